"""Times one search for a plan, and measures how good its plan is.

  python -m benchmarks.annealing.plan_time --output=benchmarks/annealing

All requests are due at once. Half have an SLO on their last token (30 s), half on their
first token (10 s) and the time between tokens (50 ms). Lengths are log-normal and the
machine's times are invented, as in the reconstruction of arXiv 2504.14966 that the
search is based on. The plan's G is compared with that of the sorted start and of a
search with five times as many proposals. The time includes the tables of the problem.

Targets for the median with the default number of proposals, compiled: 2 ms with 20
requests, 20 ms with 200.
"""

import dataclasses
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.marked_pages import fill_page, markdown
from jserve.compiled_annealing import best_kernel
from jserve.flags import define_config_flags
from jserve.program import run_program
from jserve_sched.policies.annealing.problem import evaluate, make_problem, packed
from jserve_sched.policies.annealing.search import (
    DEFAULT_PROPOSALS,
    Kernel,
    anneal,
    search,
)
from jserve_tools.reporting.documents import commit, write_whole
from tests.annealing_instances import LATENCY, NOW_S, draw_requests

_MAX_KV_TOKENS = 40_000
_SIZES = (10, 20, 50, 100, 200)
_MAX_BATCHES = (1, 4, 32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimingConfig:
    """Number of searches, and the folder of the results.

    Attributes:
      num_draws: Number of sets of requests drawn for each number of requests.
      output: Folder of plan_time.json and of the page with its table.
    """

    num_draws: int = 10
    output: pathlib.Path = pathlib.Path("out/annealing")


_CONFIG = define_config_flags(TimingConfig, group="Timing")


def measure(
    kernel: Kernel, num_requests: int, max_batch: int, num_draws: int
) -> dict[str, Any]:
    """Returns the times of searches, and the G of their plans."""
    limits: dict[str, Any] = {"max_batch": max_batch, "max_kv_tokens": _MAX_KV_TOKENS}
    rng = np.random.default_rng(num_requests)
    times_s, python_s, gains, shares = [], [], [], []
    for index in range(num_draws):
        requests = draw_requests(rng, num_requests)
        start_s = time.perf_counter()
        problem = make_problem(requests, LATENCY, now_s=NOW_S, **limits)
        goal = search(problem, kernel=kernel).score.merit
        times_s.append(time.perf_counter() - start_s)
        if index < 3:
            start_s = time.perf_counter()
            search(problem, kernel=anneal, num_proposals=DEFAULT_PROPOSALS // 10)
            python_s.append(10 * (time.perf_counter() - start_s))
        by_time = np.argsort(problem.exec_s[:, -1], kind="stable").tolist()
        sorted_goal = evaluate(problem, packed(problem, by_time)).merit
        gains.append(goal / max(sorted_goal, 1e-12))
        long = search(problem, kernel=kernel, num_proposals=5 * DEFAULT_PROPOSALS)
        shares.append(goal / max(long.score.merit, 1e-12))
    return {
        "num_requests": num_requests,
        "max_batch": max_batch,
        "p50_ms": round(1e3 * statistics.median(times_s), 3),
        "max_ms": round(1e3 * max(times_s), 3),
        "python_p50_ms": round(1e3 * statistics.median(python_s), 1),
        "goal_to_sorted": round(statistics.mean(gains), 4),
        "goal_to_long": round(statistics.mean(shares), 4),
    }


def main(argv: Sequence[str]) -> None:
    """Prints one JSON document, by number of requests and largest batch."""
    del argv
    config = _CONFIG()
    kernel = best_kernel()
    entries = [
        measure(kernel, num_requests, max_batch, config.num_draws)
        for max_batch in _MAX_BATCHES
        for num_requests in _SIZES
    ]
    document = {
        "commit": commit(),
        "is_compiled": kernel is not anneal,
        "num_proposals": DEFAULT_PROPOSALS,
        "entries": entries,
    }
    text = json.dumps(document)
    write_whole(config.output / "plan_time.json", f"{text}\n".encode())
    header = [f"{DEFAULT_PROPOSALS:,} proposals", "median, ms", "most, ms"]
    header += ["plain Python, ms", "G / sorted start's", "G / long search's"]
    rows = [
        [
            f"N = {one['num_requests']}, b_max = {one['max_batch']}",
            *(f"{one[name]:.1f}" for name in ("p50_ms", "max_ms", "python_p50_ms")),
            *(f"{one[name]:.2f}" for name in ("goal_to_sorted", "goal_to_long")),
        ]
        for one in entries
    ]
    page = config.output / "README.md"
    if page.exists():
        tables = {"plan-time": markdown(header, rows)}
        write_whole(page, fill_page(page.read_text(), tables).encode())
    print(f"{markdown(header, rows)}\n{text}")


if __name__ == "__main__":
    run_program(sys.modules[__name__])
