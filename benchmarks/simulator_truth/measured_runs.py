"""Measured vLLM runs, and simulations of the same requests.

`fcfs` schedules as vLLM does by default. vLLM kept a prefix cache, in which a preempted
request finds its pages again unless they were overwritten, and planned one step ahead.

TTFT counts from the trace's arrivals in a simulation, and from vLLM's time of arrival
(its `queued_ts`) in a measured run, as in LLMServingSim's validation.

  python -m benchmarks.simulator_truth.measured_runs

prints both. `N` is the number of requests.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jserve_sched.buckets.strategies import Continuous
from jserve_sched.policies.registry import make_policy
from jserve_sched.simulation.cost_model import CLOSED_FORMS, CostModel, OraclePredictor
from jserve_sched.simulation.roofline import (
    DEVICES,
    Decoder,
    RooflineCost,
    roofline_cost,
)
from jserve_sched.simulation.simulator import SimulationResult, make_scheduler, simulate
from jserve_sched.simulation.workload import PREFIX_BLOCK_TOKENS, Arrival
from jserve_tools.gpu_profiles.machines import (
    PROFILES,
    gpu_cost_model,
    load_machine,
    read_points,
)
from jserve_tools.load.workload_trace import TraceRow, read_trace

CARDS = ("rtx4090", "rtxpro6000")
TWO_GPUS = "rtxpro6000x2"
RUNS = (*CARDS, TWO_GPUS)
_QWEN3_32B = Decoder(
    hidden_size=5120,
    num_layers=64,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=25600,
    vocab_size=151936,
)
_COLUMNS = ("output_tokens", "queued_s", "first_token_s", "last_token_s")
_MAX_MODEL_LEN = 32_768  # of the measured runs

Figures = Mapping[str, float]
"""Results of a run: TTFT over requests, the mean over requests of a request's mean time
between tokens, and the time from the first arrival to the last token."""


def _figures(
    output_tokens: np.ndarray,
    arrival_s: np.ndarray,
    first_token_s: np.ndarray,
    last_token_s: np.ndarray,
) -> Figures:
    """Returns the figures of times `[N]` and output lengths `[N]`, at least 2 each."""
    tpot_s = (last_token_s - first_token_s) / (output_tokens - 1)
    return {
        "ttft_mean_s": float((first_token_s - arrival_s).mean()),
        "tpot_mean_ms": float(tpot_s.mean() * 1e3),
        "makespan_s": float(last_token_s.max() - arrival_s.min()),
    }


def measured(run: str) -> np.ndarray:
    """Returns output tokens and times in seconds of a vLLM run of `RUNS`, `[4, N]`."""
    return read_points(PROFILES / run / "measured_requests.csv", _COLUMNS).T


def measured_figures(run: str) -> Figures:
    """Returns the figures of a vLLM run of `RUNS`."""
    return _figures(*measured(run))


def trace_rows(run: str) -> list[TraceRow]:
    """Returns the requests of a measured run of `RUNS`."""
    name = f"{run}/measured_requests" if run == TWO_GPUS else "sharegpt_300"
    return read_trace(PROFILES / f"{name}.csv")


def roofline_of(run: str, **changes: Any) -> RooflineCost:
    """Returns the costs of a measured run by arithmetic, with the run's limits.

    Args:
      changes: Fields of `Device` that differ from the card's.
    """
    card = run.removesuffix("x2")
    limits = CLOSED_FORMS[f"{card}-llama3.1-8b"]
    cost = load_machine(f"roofline:device={card}:model=llama-8b")
    num_kv_tokens = limits.num_kv_tokens
    if run == TWO_GPUS:
        cost = roofline_cost(run, DEVICES[card], _QWEN3_32B, tensor_parallel=2)
        num_kv_tokens = cost.num_kv_tokens
    assert isinstance(cost, RooflineCost)
    return dataclasses.replace(
        cost,
        device=dataclasses.replace(cost.device, **changes),
        num_kv_tokens=num_kv_tokens,
        page_size=limits.page_size,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
    )


def simulated_run(
    rows: Sequence[TraceRow], cost_model: CostModel
) -> tuple[Figures, SimulationResult]:
    """Simulates `fcfs` on the requests of a trace, without padding."""
    table = Continuous().table(
        max_num_seqs=cost_model.max_num_seqs,
        max_num_batched_tokens=cost_model.max_num_batched_tokens,
        block_tokens=1,
    )
    scheduler = make_scheduler(
        policy=make_policy("fcfs"),
        cost_model=cost_model,
        buckets=table,
        predictor=OraclePredictor(cost_model, table.block_tokens),
        max_model_len=_MAX_MODEL_LEN,
        enable_prefix_caching=True,
    )
    arrivals = []
    for index, row in enumerate(rows):
        # No two prompts have content in common, which a cache would share.
        first = 1000 * index
        num_blocks = -(-row.prompt_tokens // PREFIX_BLOCK_TOKENS)
        arrivals.append(
            Arrival(
                request_id=f"{index:04d}",
                arrival_s=row.arrival_s,
                num_prompt_tokens=row.prompt_tokens,
                max_tokens=row.output_tokens,
                block_ids=range(first, first + num_blocks),
            )
        )
    result = simulate(scheduler, cost_model, arrivals, lag=1, max_spans=20.0)
    columns = [
        (one.max_tokens, one.arrival_s, one.token_times_s[0], one.token_times_s[-1])
        for one in result.outcomes
    ]
    return _figures(*np.array(columns, np.float64).T), result


def main() -> None:
    """Prints the figures of all runs, measured and simulated."""
    for run in RUNS:
        print(run, "measured", measured_figures(run))
        print(run, "arithmetic", simulated_run(trace_rows(run), roofline_of(run))[0])
        if run in CARDS:
            machine = gpu_cost_model(f"{run}-llama3.1-8b-table")
            print(run, "kernel times", simulated_run(trace_rows(run), machine)[0])


if __name__ == "__main__":
    main()
