"""Compares the simulator with three measured vLLM runs, request by request.

  python -m benchmarks.simulator_truth.reproduce --output=report.json

vLLM 0.19 served 300 ShareGPT requests at 10 a second with Llama-3.1-8B on an RTX 4090
and an RTX PRO 6000 (see tools/jserve_tools/gpu_profiles/README.md). They are compared
with `fcfs` and the cost models of these cards, and so is Qwen3-32B on two RTX PRO 6000,
for which there is arithmetic only. The target on the RTX 4090 is TTFT within 5 %, TPOT
and makespan within 3 %, with the interpolated tables at the settings of the run. The
last line of stdout is one JSON document.
"""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks.simulator_truth.measured_runs import (
    RUNS,
    TWO_GPUS,
    errors_percent,
    measured_figures,
    roofline_of,
    simulated_run,
    trace_rows,
    ttft_differences_s,
)
from jserve.program import run_program
from jserve_sched.simulation.cost_model import CostModel
from jserve_sched.simulation.gpu_costs import TableCost
from jserve_tools.gpu_profiles.machines import gpu_cost_model
from jserve_tools.reporting.documents import commit, plain, write_whole
from jserve_tools.reporting.tables import render

_OUTPUT = flags.DEFINE_string("output", "", "JSON file to write as well.")
_TARGET_PERCENT = {"ttft_mean_s": 5.0, "tpot_mean_ms": 3.0, "makespan_s": 3.0}


# Label, cost model, settings.
_Variant = tuple[str, CostModel, dict[str, Any]]


def _variants(card: str) -> Iterator[_Variant]:
    yield "roofline", roofline_of(card), {}
    if card == TWO_GPUS:
        yield "roofline, no all-reduce", roofline_of(card, link=1e18, link_s=0.0), {}
        yield "roofline, links of 64 GB/s", roofline_of(card, link=64e9), {}
        return
    name = f"{card}-llama3.1-8b"
    table = gpu_cost_model(f"{name}-table")
    closed = gpu_cost_model(name)
    assert isinstance(table, TableCost)
    uncached = {"enable_prefix_caching": False}
    yield "tables", table, {}
    yield "tables, not planned ahead", table, {"lag": 0}
    yield "tables, no prefix cache", table, uncached
    if table.skew:
        yield "tables, no skew", dataclasses.replace(table, skew=0.0), {}
    yield "closed form", closed, {}
    yield "closed form, no prefix cache", closed, uncached


def _run(card: str, variant: _Variant) -> dict[str, Any]:
    label, cost_model, changes = variant
    settings: dict[str, Any] = {"enable_prefix_caching": True, "lag": 1} | changes
    start_s = time.perf_counter()
    figures, result = simulated_run(trace_rows(card), cost_model, **settings)
    differences_s = np.abs(ttft_differences_s(card, result))
    return {
        "card": card,
        "variant": label,
        "cost_model": cost_model.name,
        **settings,
        "figures": figures,
        "error_percent": errors_percent(figures, measured_figures(card)),
        "ttft_difference_p50_s": np.median(differences_s),
        "ttft_difference_p90_s": np.percentile(differences_s, 90),
        "num_steps": result.num_steps,
        "num_preemptions": result.counters.num_preemptions,
        "wall_s": time.perf_counter() - start_s,
    }


def _table(card: str, runs: Sequence[dict[str, Any]]) -> str:
    truth = measured_figures(card)
    rows = [
        [card, *truth, "|TTFT - measured| p50, p90 s", "steps", "preempted"],
        ["measured", *(f"{value:.2f}" for value in truth.values()), "", "", ""],
    ]
    for run in runs:
        errors = run["error_percent"]
        cells = [
            f"{value:.2f} ({errors[name]:+.1f} %)"
            for name, value in run["figures"].items()
        ]
        cells.append(
            f"{run['ttft_difference_p50_s']:.2f}, {run['ttft_difference_p90_s']:.2f}"
        )
        counts = [str(run["num_steps"]), str(run["num_preemptions"])]
        rows.append([run["variant"], *cells, *counts])
    return render(rows)


def main(argv: Sequence[str]) -> int:
    """Prints a table for each card; returns 1 if the target is missed."""
    del argv
    todo = [(card, variant) for card in RUNS for variant in _variants(card)]
    runs = [_run(card, variant) for card, variant in todo]
    for card in RUNS:
        print(_table(card, [run for run in runs if run["card"] == card]), end="\n\n")
    errors = next(run for run in runs if run["variant"] == "tables")["error_percent"]
    is_met = all(abs(errors[key]) <= most for key, most in _TARGET_PERCENT.items())
    print(f"RTX 4090, tables: target {'met' if is_met else 'missed'}")
    text = json.dumps(
        plain(
            {
                "commit": commit(),
                "target_percent": _TARGET_PERCENT,
                "is_target_met": is_met,
                "measured": {card: measured_figures(card) for card in RUNS},
                "runs": runs,
            }
        )
    )
    print(text)
    if _OUTPUT.value:
        write_whole(pathlib.Path(_OUTPUT.value), f"{text}\n".encode())
    return 0 if is_met else 1


if __name__ == "__main__":
    run_program(sys.modules[__name__])
