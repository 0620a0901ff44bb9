"""Times one search for a plan, tables included, and says what its plan is worth.

  python benchmarks/annealing/plan_time.py --output=benchmarks/annealing

All requests are there at once. Half are judged by their end (30 s), half by their
first token (10 s) and the mean time between tokens (50 ms); lengths are log-normal and
the machine's times invented, as in the notes on arXiv 2504.14966 that the search was
built by. Searches end after a number of proposals, or with a budget of time: then the
number is what the budget allows at the speed measured, and the clock ends it too, as
in the server. A search takes some time before its first change: a budget below that
tries nothing, and is exceeded. Beside the time by the clock stands the processor's own,
which what else runs on the machine hardly changes. G is compared with the sorted
start's and with that of a long search.

All requests are searched here; a server's policy searches a window of them, and is
timed by itself (`revise_time`).

Targets, for the median with the default number of proposals: 20 requests in 2 ms, 200
in 20 ms; 2,000 within the budget, as a server searches them.
"""

import io
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from absl import flags
from revise_time import time_revisions

from jserve.compiled_annealing import best_kernel, proposals_per_s
from jserve.program import ProgramError, run_program
from jserve_sched.annealing import DEFAULT_PROPOSALS, Found, check_plan, search
from jserve_sched.annealing_kernel import PYTHON_KERNEL, Kernel
from jserve_sched.annealing_problem import AnnealingProblem, make_problem
from jserve_sched.request import Request
from jserve_sched.request_latency import Bilinear, RequestLatency
from jserve_sched.slo import Slo
from jserve_tools.documents import commit, write_whole
from jserve_tools.plots import style_axes

_OUTPUT = flags.DEFINE_string(
    "output", "", "Folder for plan_time.json and plan_time.png; none if empty."
)
_NUM_REQUESTS = flags.DEFINE_list(
    "num_requests", ["10", "20", "50", "100", "200", "500", "2000"], "Requests to plan."
)
_MAX_BATCHES = flags.DEFINE_list("max_batches", ["1", "4", "32"], "Largest batches.")
_NUM_DRAWS = flags.DEFINE_integer(
    "num_draws", 10, "Sets of requests for each of them.", lower_bound=1
)
_BUDGETS_MS = flags.DEFINE_list("budgets_ms", ["1", "2", "5", "20"], "Budgets of time.")
_SERVED_WAITING = flags.DEFINE_integer(
    "served_waiting", 2000, "Requests that wait at the server's policy.", lower_bound=1
)
_LONG_PROPOSALS = flags.DEFINE_integer(
    "long_proposals", 50_000, "Proposals of the long search.", lower_bound=1
)

_LATENCY = RequestLatency(
    prefill=Bilinear(both=1e-4, batch=5e-3, length=2e-5, base=4e-2),
    decode=Bilinear(both=3e-7, batch=3e-4, length=9e-7, base=1.8e-2),
)
_MAX_KV_TOKENS = 40_000
_SERVED_SLOTS = (32, 256)
_SERVED_BUDGET_MS = 5.0
_SERVED_TIMES = 30
_TARGETS_MS = {20: 2.0, 200: 20.0}  # by requests
_COLOURS = {"compiled": "#009E73", "python": "#0072B2"}
_BUDGET_COLOUR = "#D55E00"


def draw_requests(rng: np.random.Generator, num_requests: int) -> list[Request]:
    """Returns requests that arrived at 0."""
    is_code = rng.random(num_requests) < 0.5
    prompts = np.exp(rng.normal(5.0, np.where(is_code, 0.8, 1.1)))
    outputs = np.exp(rng.normal(5.3, np.where(is_code, 0.6, 0.8)))
    code, chat = Slo(ttlt_s=30.0), Slo(ttft_s=10.0, tbt_s=0.05)
    return [
        Request(
            request_id=str(index),
            arrival_s=0.0,
            prompt_tokens=np.zeros(int(np.clip(prompts[index], 1, 2000)), np.int32),
            max_tokens=int(np.clip(outputs[index], 1, 1000)),
            slo=code if is_code[index] else chat,
        )
        for index in range(num_requests)
    ]


def _problem(requests: Sequence[Request], max_batch: int) -> AnnealingProblem:
    return make_problem(
        requests,
        _LATENCY,
        now_s=0.0,
        max_batch=max_batch,
        max_kv_tokens=_MAX_KV_TOKENS,
        tpot="mean",
    )


def _in_proposals(
    kernel: Kernel, num_proposals: int
) -> Callable[[AnnealingProblem, float], Found]:
    return lambda problem, _: search(
        problem, kernel=kernel, num_proposals=num_proposals
    )


def _in_budget(
    kernel: Kernel, budget_s: float, speed_per_s: float
) -> Callable[[AnnealingProblem, float], Found]:
    """Returns a search of what a budget allows, started at the time handed in."""

    def run(problem: AnnealingProblem, start_s: float) -> Found:
        return search(
            problem,
            kernel=kernel,
            num_proposals=max(round(speed_per_s * budget_s), 1),
            deadline=lambda: time.perf_counter() - start_s >= budget_s,
        )

    return run


def time_searches(
    draws: Sequence[Sequence[Request]],
    max_batch: int,
    run: Callable[[AnnealingProblem, float], Found],
    long_goals: Sequence[float],
) -> dict[str, float]:
    """Returns times and worth of one search for each set of requests."""
    times_s, cpu_s, gains, shares, proposals, early = [], [], [], [], [], 0
    for requests, long_goal in zip(draws, long_goals, strict=True):
        start_s, start_cpu_s = time.perf_counter(), time.thread_time()
        problem = _problem(requests, max_batch)
        found = run(problem, start_s)
        cpu_s.append(time.thread_time() - start_cpu_s)
        times_s.append(time.perf_counter() - start_s)
        check_plan(problem, found.plan)
        proposals.append(found.num_proposals)
        early += found.is_early_exit
        gains.append(found.score.goal / max(found.sorted_score.goal, 1e-12))
        shares.append(found.score.goal / max(long_goal, 1e-12))
    return {
        "p50_ms": round(1e3 * statistics.median(times_s), 3),
        "max_ms": round(1e3 * max(times_s), 3),
        "cpu_p50_ms": round(1e3 * statistics.median(cpu_s), 3),
        "num_proposals": round(statistics.mean(proposals)),
        "num_early_exits": early,
        "goal_to_sorted": round(statistics.mean(gains), 4),
        "goal_to_long": round(statistics.mean(shares), 4),
    }


def measure(
    kernels: Mapping[str, Kernel],
    num_requests: int,
    max_batch: int,
    budgets_ms: Sequence[float],
) -> dict[str, Any]:
    """Returns what searches of so many requests took, by kernel and by budget.

    "start" is a search that ends before its first change.
    """
    rng = np.random.default_rng(num_requests)
    draws = [draw_requests(rng, num_requests) for _ in range(_NUM_DRAWS.value)]
    fastest = kernels.get("compiled", PYTHON_KERNEL)
    long_goals = [
        search(
            _problem(requests, max_batch),
            kernel=fastest,
            num_proposals=_LONG_PROPOSALS.value,
        ).score.goal
        for requests in draws
    ]
    found: dict[str, Any] = {"num_requests": num_requests, "max_batch": max_batch}
    for name, kernel in kernels.items():
        speed_per_s = proposals_per_s(kernel, min(num_requests, 256), max_batch)
        rows = {
            "proposals_per_s": round(speed_per_s),
            "start": time_searches(
                draws, max_batch, _in_proposals(kernel, 0), long_goals
            ),
            "default": time_searches(
                draws, max_batch, _in_proposals(kernel, DEFAULT_PROPOSALS), long_goals
            ),
        }
        for budget_ms in budgets_ms:
            run = _in_budget(kernel, budget_ms / 1e3, speed_per_s)
            rows[f"{budget_ms:g}_ms"] = time_searches(draws, max_batch, run, long_goals)
        found[name] = rows
    return found


def _numbers(name: str, texts: Sequence[str], least: float) -> list[float]:
    """Returns a flag's numbers.

    Raises:
      ProgramError: for what is none, or below the least.
    """
    try:
        found = [float(text) for text in texts]
    except ValueError:
        raise ProgramError(f"{name}={','.join(texts)} is not numbers") from None
    for number in found:
        if not least <= number < 1e6:
            raise ProgramError(f"{name}: {number:g} is not in {least:g}..1000000")
    if not found:
        raise ProgramError(f"{name} is empty")
    return found


def _counts(name: str, texts: Sequence[str]) -> list[int]:
    found = _numbers(name, texts, 1)
    for number in found:
        if not number.is_integer():
            raise ProgramError(f"{name}: {number:g} is not a whole number")
    return [int(number) for number in found]


def draw_picture(
    entries: Sequence[Mapping[str, Any]], max_batch: int, budgets_ms: Sequence[float]
) -> bytes:
    """Returns a PNG: time, and G to the long search's, over the number of requests."""
    rows = [one for one in entries if one["max_batch"] == max_batch]
    sizes = [one["num_requests"] for one in rows]
    figure = matplotlib.figure.Figure(figsize=(9, 3.6), layout="constrained", dpi=110)
    times, worth = figure.subplots(1, 2)
    for name, colour in _COLOURS.items():
        known = [one[name] for one in rows if name in one]
        if not known:
            continue
        label = f"{name}, {DEFAULT_PROPOSALS:,} proposals"
        p50_ms = [one["default"]["p50_ms"] for one in known]
        times.plot(sizes, p50_ms, marker="o", color=colour, label=label)
    for size, limit_ms in _TARGETS_MS.items():
        times.plot([size], [limit_ms], marker="_", ms=22, mew=2, color="#222222")
    times.set_yscale("log")
    kernel = "compiled" if "compiled" in rows[0] else "python"
    goals = [one[kernel]["default"]["goal_to_long"] for one in rows]
    worth.plot(sizes, goals, marker="o", color=_COLOURS[kernel], label="default")
    sorted_goals = [
        one[kernel]["default"]["goal_to_long"]
        / one[kernel]["default"]["goal_to_sorted"]
        for one in rows
    ]
    worth.plot(sizes, sorted_goals, color="#999999", ls="--", label="sorted start")
    for index, budget_ms in enumerate(budgets_ms):
        row = f"{budget_ms:g}_ms"
        look = {
            "color": _BUDGET_COLOUR,
            "alpha": 0.3 + 0.7 * (index + 1) / len(budgets_ms),
            "label": f"{budget_ms:g} ms",
        }
        worth.plot(sizes, [one[kernel][row]["goal_to_long"] for one in rows], **look)
        times.plot(sizes, [one[kernel][row]["p50_ms"] for one in rows], ls=":", **look)
    for axes in (times, worth):
        axes.set_xscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    title = f"One plan, batches of up to {max_batch} (bars: targets)"
    style_axes(times, title, "requests waiting", "ms, median")
    style_axes(
        worth, f"Its worth ({kernel})", "requests waiting", "G / long search's G"
    )
    for axes in (times, worth):
        axes.legend(fontsize=7, frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def main(argv: Sequence[str]) -> None:
    """Prints one JSON document, by number of requests and largest batch."""
    del argv
    sizes = _counts("num_requests", _NUM_REQUESTS.value)
    batches = _counts("max_batches", _MAX_BATCHES.value)
    budgets_ms = _numbers("budgets_ms", _BUDGETS_MS.value, 0.001)
    kernels = {"python": PYTHON_KERNEL}
    start_s = time.perf_counter()
    kernel = best_kernel()
    ready_s = time.perf_counter() - start_s
    if kernel is not PYTHON_KERNEL:
        kernels["compiled"] = kernel
    entries = [
        measure(kernels, num_requests, max_batch, budgets_ms)
        for max_batch in batches
        for num_requests in sizes
    ]
    rng = np.random.default_rng(_SERVED_WAITING.value)
    served = [
        time_revisions(
            draw_requests(rng, _SERVED_WAITING.value),
            max_num_seqs=max_num_seqs,
            budget_ms=_SERVED_BUDGET_MS,
            num_times=_SERVED_TIMES,
        )
        for max_num_seqs in _SERVED_SLOTS
    ]
    document = {
        "commit": commit(),
        "kernel_ready_s": round(ready_s, 2),
        "default_proposals": DEFAULT_PROPOSALS,
        "long_proposals": _LONG_PROPOSALS.value,
        "num_draws": _NUM_DRAWS.value,
        "served": served,
    }
    lines = ",\n".join(json.dumps(one) for one in entries)
    text = f'{json.dumps(document)[:-1]},\n"entries": [\n{lines}\n]}}\n'
    print(text, end="")
    if _OUTPUT.value:
        folder = pathlib.Path(_OUTPUT.value)
        write_whole(folder / "plan_time.json", text.encode())
        shown = 4 if 4 in batches else batches[0]
        write_whole(folder / "plan_time.png", draw_picture(entries, shown, budgets_ms))


if __name__ == "__main__":
    run_program(sys.modules[__name__])
