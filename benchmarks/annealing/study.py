"""The claims made for scheduling by annealing, beside what the simulator finds.

  python -m benchmarks.annealing.study               # half an hour
  python -m benchmarks.annealing.study --num_draws=2 --num_requests=10 --loads=1

Draws requests from two traces, serves each draw under each policy, and prints tables.
Half of the requests are code completions, with an SLO on the end-to-end latency, half
are chat, with SLOs on TTFT and TPOT. The paper's bounds could not be determined: 30 s,
10 s and 50 ms are reconstructed, and the traces are not the paper's. The machine is
Llama-3.1-8B on an RTX 4090 whose kernels were measured, without padding; planning takes
no virtual time, and step times and lengths are known exactly, so that policies differ
by their order only. An interrupted call goes on where it stopped.
"""

import itertools
import json
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks.study import Run, grid, markdown, mean, print_tables, simulate
from jserve.program import run_program
from jserve_tools.load.workload_trace import DEFAULT_TRACE, read_trace
from jserve_tools.reporting.documents import write_whole

BASE, SORTED, SEARCHED = "fcfs", "sjf", "annealing"  # vLLM's order is the base
OTHERS = ("edf", "laxity", "qoserve", "sliding")
POLICIES = (BASE, SORTED, *OTHERS, SEARCHED)
TRACES = DEFAULT_TRACE.parent
# Traces of code and of chat. Not in the paper: completions as long as whole answers.
MIXES = {
    "azure": ("azure_code", "azure_conv"),
    "long_code": ("sharegpt_300", "azure_conv"),
}
CLASSES = [
    {"name": "code", "share": 0.5, "ttlt_s": 30.0},
    {"name": "chat", "share": 0.5, "ttft_s": 10.0, "tbt_s": 0.050},
]
# The paper's claims in its abstract: two maxima, against vLLM and LMDeploy, which may
# come from different experiments.
CLAIMS = {"attainment": "up to 5", "mean latency": f"{1 - 0.316:.2f}"}
_FOLDER = pathlib.Path("out/annealing")
_NUM_ARRIVALS = 300
_NUM_RESAMPLES = 2000

Cell = tuple[str, int, int]  # mix, requests due at once, most that run at once


def draw(mix: str, num_requests: int, seed: int) -> str:
    """Returns requests in random order, half of each kind, as a CSV trace."""
    rng = np.random.default_rng(seed)
    jobs = []
    for one, trace in zip(CLASSES, MIXES[mix], strict=True):
        rows = read_trace(TRACES / f"{trace}.csv")
        picks = rng.choice(len(rows), num_requests // 2, replace=False)
        jobs += [
            f"{rows[pick].prompt_tokens},{rows[pick].output_tokens},{one['name']}"
            for pick in picks
        ]
    lines = ["arrival_s,prompt_tokens,output_tokens,service_class"]
    order = rng.permutation(len(jobs)).tolist()
    lines += [f"{place},{jobs[job]}" for place, job in enumerate(order)]
    return "\n".join(lines) + "\n"


def settings(mix: str, num_requests: int, limit: int, seed: int) -> dict[str, Any]:
    """Returns the flags of a draw on a machine that runs `limit` at once."""
    trace = _FOLDER / f"{mix}_{num_requests}_{seed}.csv"
    write_whole(trace, draw(mix, num_requests, seed).encode())
    classes = _FOLDER / "classes.json"
    write_whole(classes, json.dumps(CLASSES).encode())
    limits = {"max_num_seqs": limit} if limit else {}
    return {
        **{"cost_model": "rtx4090-llama3.1-8b-table", "bucket_strategies": "none"},
        **{"trace": trace, "service_classes": classes, **limits},
    }


def ratio(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Returns the ratio of two sums, and its 95 % interval, bootstrapped over pairs."""
    count = len(ours)
    picks = np.random.default_rng(0).integers(count, size=(_NUM_RESAMPLES, count))
    sums = np.sum(theirs[picks], axis=1)
    spread = np.sum(ours[picks], axis=1)[sums > 0] / sums[sums > 0]
    low, high = np.percentile(spread, (2.5, 97.5)).tolist()
    return float(ours.sum()) / float(theirs.sum()), low, high


def column(runs: Sequence[Run], name: str) -> np.ndarray:
    """Returns the sum over each run's requests: of those attained, or of latencies."""
    means = [run[name] if name in run else run["e2e_s"]["mean"] for run in runs]
    sums = [run["num_requests"] * one for run, one in zip(runs, means, strict=True)]
    return np.array(sums, np.float64)


def measures(runs: Sequence[Run]) -> dict[str, str]:
    """Returns what is reported of runs: attainment, mean latency and G."""
    share, by_mean = (
        f"{100 * mean(runs, name):.1f}"
        for name in ("attainment", "attainment_mean_tpot")
    )
    latency_s = column(runs, "mean latency")
    goal = 1e3 * float(np.mean(column(runs, "attainment") / latency_s))
    num_requests = sum(run["num_requests"] for run in runs)
    return {
        "attainment, %": share if share == by_mean else f"{share} / {by_mean}",
        "mean latency, s": f"{latency_s.sum() / num_requests:.1f}",
        "G, 1/1000 s": f"{goal:.1f}",
    }


def tables(found: Mapping[tuple[str, str], Sequence[Run]]) -> dict[str, str]:
    """Returns a table for each measure; `found` has the runs by row and policy."""
    texts = {place: measures(runs) for place, runs in found.items()}
    names = next(iter(texts.values()))
    return {
        name: grid(name, {place: one[name] for place, one in texts.items()})
        for name in names
    }


def claims(found: Mapping[tuple[Cell, str], Sequence[Run]]) -> str:
    """Returns gains over the base, by mix and policy: the median and the best cell."""
    rows = []
    places = dict.fromkeys((cell[0], policy) for cell, policy in found)
    for mix, policy in places:
        if policy == BASE:
            continue
        row = [f"{mix}, {policy}"]
        for name, best in (("attainment", max), ("mean latency", min)):
            ratios = {
                cell: ratio(column(runs, name), column(found[cell, BASE], name))[0]
                for (cell, one), runs in found.items()
                if (cell[0], one) == (mix, policy)
            }
            cell = best(ratios, key=ratios.__getitem__)
            row.append(f"{statistics.median(ratios.values()):.2f}")
            row.append(f"{ratios[cell]:.2f} (N {cell[1]}, b {cell[2]})")
        rows.append(row)
    paper = [part for value in CLAIMS.values() for part in ("-", value)]
    rows.append(["*paper, against vLLM and LMDeploy*", *paper])
    header = ["reconstructed setting, over fcfs"]
    for name in CLAIMS:
        header += [f"{name}: median", "best cell"]
    return markdown(header, rows)


def at_once() -> None:
    """Prints what is gained where requests are due together."""
    counts = [int(one) for one in flags.FLAGS.num_requests]
    cells = [
        (mix, count, limit)
        for mix, counts in (
            ("azure", counts),
            ("long_code", [count for count in counts if count <= 20]),
        )
        for count, limit in itertools.product(counts, (1, 2, 4))
    ]
    calls = [
        settings(*cell, seed) | {"one_shot": True, "policies": flags.FLAGS.policies}
        for cell in cells
        for seed in range(flags.FLAGS.num_draws)
    ]
    draws = iter(simulate(_FOLDER, calls))
    found: dict[tuple[Cell, str], list[Run]] = {}
    for cell in cells:
        some = [next(draws) for _ in range(flags.FLAGS.num_draws)]
        for policy, runs in zip(
            flags.FLAGS.policies, zip(*some, strict=True), strict=True
        ):
            found[cell, policy] = list(runs)
    names = {cell: "{}, N = {}, b_max = {}".format(*cell) for cell in cells}
    by_name = {(names[cell], policy): runs for (cell, policy), runs in found.items()}
    gains = {
        (names[cell], name): "{:.2f} ({:.2f} to {:.2f})".format(
            *ratio(column(found[cell, SEARCHED], name), column(found[cell, BASE], name))
        )
        for cell, name in itertools.product(cells, CLAIMS)
    }
    search = grid(f"{SEARCHED} over {BASE}", gains)
    print_tables({"claims": claims(found), "search": search} | tables(by_name))


def one_by_one() -> None:
    """Prints what policies attain where requests come one by one.

    The capacity is the rate at which the base completes them if all are due at once.
    """
    limits = (4, 0)
    base = [settings("azure", _NUM_ARRIVALS, limit, 0) for limit in limits]
    capacity = [
        runs[0]["finished_per_s"]
        for runs in simulate(_FOLDER, [one | {"one_shot": True} for one in base])
    ]
    places = [*itertools.product(range(len(limits)), map(float, flags.FLAGS.loads))]
    calls = [
        base[place]
        | {"poisson": True, "policies": POLICIES, "num_seeds": flags.FLAGS.num_runs}
        | {"qps": f"{load * capacity[place]:.5g}"}
        for place, load in places
    ]
    found: dict[tuple[str, str], list[Run]] = {}
    for (place, load), runs in zip(places, simulate(_FOLDER, calls), strict=True):
        limit = limits[place] or "the machine's 256"
        for run in runs:
            row = f"b_max = {limit}: {load:g} x ({run['qps']:.2f}/s)"
            found.setdefault((row, run["policy"]), []).append(run)
    print_tables(tables(found))


def main(argv: Sequence[str]) -> None:
    """Runs the study."""
    del argv
    at_once()
    one_by_one()


if __name__ == "__main__":
    flags.DEFINE_integer("num_draws", 20, "Draws of requests due at once.")
    flags.DEFINE_list("num_requests", ["10", "20", "50"], "Requests due.")
    flags.DEFINE_list("loads", ["0.8", "1", "1.2", "1.4"], "Shares of capacity.")
    flags.DEFINE_integer("num_runs", 2, "Runs at each load.")
    flags.DEFINE_list("policies", [BASE, SORTED, SEARCHED], "Due at once.")
    run_program(sys.modules[__name__])
