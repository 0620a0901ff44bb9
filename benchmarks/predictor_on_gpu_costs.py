"""How well a linear model predicts GPU step times: SlidingServe's Table 5, replayed.

  python benchmarks/predictor_on_gpu_costs.py \
      --output=benchmarks/simulator_truth/predictor.json

A policy serves Mixed-v1 in virtual time on each card at about its goodput and at twice
that; every distinct batch it made is priced by the card's interpolated kernel times.
The paper's linear model is fitted to half of them and judged on the other half, drawn
at random or the later half of the run (neighbouring decode steps are nearly alike, so
the first split is the easier one). The paper reports 2.72 ms on an A100 with another
model. The last line of stdout is one JSON document.
"""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from jserve.program import ProgramError, run_program
from jserve_sched import features
from jserve_sched.bucket_strategies import Continuous
from jserve_sched.cost_model import CostModel, OraclePredictor
from jserve_sched.linear_predictor import fit_linear
from jserve_sched.policies import Policy, make_policy
from jserve_sched.simulator import make_scheduler, simulate
from jserve_sched.workload import (
    WORKLOADS,
    at_rate,
    isolated_times,
    unit_arrivals,
)
from jserve_tools.documents import commit, plain, write_whole
from jserve_tools.machines import gpu_cost_model
from jserve_tools.predictor_report import ALL, judge
from jserve_tools.tables import render

_POLICY = flags.DEFINE_string("policy", "sliding", "Policy that makes the batches.")
_NUM_REQUESTS = flags.DEFINE_integer(
    "num_requests", 1000, "Requests of a run.", lower_bound=50
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Decides requests and the random half.", lower_bound=0
)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file to write as well.")

_WORKLOAD = "mixed_v1"
_RATES_QPS = {
    "rtx4090-llama3.1-8b-table": (0.5, 1.0),
    "rtxpro6000-llama3.1-8b-table": (1.5, 3.0),
}
_PAPER_MAE_MS = 2.72
_MAX_PROMPT_TOKENS = 32_768


def _batches(
    cost_model: CostModel, policy: Policy, qps: float
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Returns distinct batches `[N, F]` by time, their seconds `[N]`, and counts."""
    yardstick = isolated_times(cost_model, max_prompt_tokens=_MAX_PROMPT_TOKENS)
    unit = unit_arrivals(
        WORKLOADS[_WORKLOAD],
        num_requests=_NUM_REQUESTS.value,
        seed=_SEED.value,
        yardstick=yardstick,
    )
    table = Continuous().table(
        max_num_seqs=cost_model.max_num_seqs,
        max_num_batched_tokens=cost_model.max_num_batched_tokens,
        block_tokens=1,
    )
    scheduler = make_scheduler(
        policy=policy,
        cost_model=cost_model,
        buckets=table,
        predictor=OraclePredictor(cost_model, table.block_tokens),
        max_model_len=2 * _MAX_PROMPT_TOKENS,
    )
    run = simulate(scheduler, cost_model, at_rate(unit, qps), records_steps=True)
    assert run.steps is not None
    matrix = np.array([step.features for step in run.steps])
    _, first = np.unique(matrix, axis=0, return_index=True)
    matrix = matrix[np.sort(first)]
    about = {
        "num_steps": run.num_steps,
        "num_distinct": len(matrix),
        "num_violations": sum(not outcome.is_met for outcome in run.outcomes),
    }
    return matrix, cost_model.step_s(matrix, table.block_tokens), about


def _judge(
    matrix: np.ndarray, seconds: np.ndarray, order: np.ndarray
) -> dict[str, Any]:
    """Fits to the first half of `order` and returns the errors on the second."""
    train, test = np.array_split(order, 2)
    model = fit_linear(matrix[train], seconds[train])
    report = judge(
        {"linear": model.predict(matrix[test])},
        {},
        matrix=matrix[test],
        duration_s=seconds[None, test],
    )
    found = {
        name: {
            "num_batches": entry["num_steps"],
            "mean_step_ms": entry["mean_step_ms"],
            **entry["predictors"]["linear"]["against_median"],
        }
        for name, entry in report.items()
    }
    every = found.pop(ALL)
    share = every["mae_ms"] / every["mean_step_ms"]
    return {**every, "mae_percent_of_mean": 100.0 * share, "by_scenario": found}


def _runs(policy: Policy) -> list[dict[str, Any]]:
    todo = [(name, qps) for name, rates in _RATES_QPS.items() for qps in rates]
    runs = []
    for name, qps in tqdm(todo, disable=None):
        matrix, seconds, about = _batches(gpu_cost_model(name), policy, qps)
        shuffled = np.random.default_rng(_SEED.value).permutation(len(matrix))
        for split, order in (("random", shuffled), ("later", np.arange(len(matrix)))):
            labels = {"cost_model": name, "qps": qps, "test_half": split}
            runs.append(labels | about | _judge(matrix, seconds, order))
    return runs


def _table(runs: Sequence[dict[str, Any]]) -> str:
    header = ["cost model", "req/s", "test half", "batches", "MAE ms", "of mean"]
    header += ["R^2", *(f"{name} ms" for name in features.SCENARIOS)]
    rows = [header]
    for run in runs:
        row = [run["cost_model"], f"{run['qps']:g}", run["test_half"]]
        row.append(str(run["num_distinct"]))
        row += [f"{run['mae_ms']:.2f}", f"{run['mae_percent_of_mean']:.2f} %"]
        row.append(f"{run['r2']:.4f}")
        for name in features.SCENARIOS:
            one = run["by_scenario"].get(name)
            row.append(f"{one['mae_ms']:.2f}" if one else "-")
        rows.append(row)
    return render(rows)


def main(argv: Sequence[str]) -> None:
    """Prints a table; the last line is one JSON document."""
    del argv
    try:
        policy = make_policy(_POLICY.value)
    except ValueError as error:
        raise ProgramError(error) from None
    runs = _runs(policy)
    print(f"{_table(runs)}\nthe paper, Qwen2.5-7B on an A100: {_PAPER_MAE_MS} ms")
    text = json.dumps(
        plain(
            {
                "commit": commit(),
                "policy": _POLICY.value,
                "workload": _WORKLOAD,
                "num_requests": _NUM_REQUESTS.value,
                "seed": _SEED.value,
                "paper_mae_ms": _PAPER_MAE_MS,
                "runs": runs,
            }
        )
    )
    print(text)
    if _OUTPUT.value:
        write_whole(pathlib.Path(_OUTPUT.value), f"{text}\n".encode())


if __name__ == "__main__":
    run_program(sys.modules[__name__])
