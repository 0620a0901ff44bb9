"""Measured vLLM runs, and simulations of the same requests.

`fcfs` schedules as vLLM does by default. vLLM kept a prefix cache, in which a preempted
request finds its pages again unless they were overwritten, and planned one step ahead.

TTFT counts from the trace's arrivals in a simulation, and from vLLM's time of arrival
(its `queued_ts`) in a measured run, as in LLMServingSim's validation.

`N` is the number of requests.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jserve_sched.buckets.strategies import Continuous
from jserve_sched.memory.ledger import KvLedger
from jserve_sched.policies.registry import make_policy
from jserve_sched.scheduler import Scheduler
from jserve_sched.simulation.cost_model import CLOSED_FORMS, CostModel, OraclePredictor
from jserve_sched.simulation.roofline import (
    DEVICES,
    Decoder,
    RooflineCost,
    roofline_cost,
)
from jserve_sched.simulation.simulator import SimulationResult, simulate
from jserve_sched.simulation.workload import PREFIX_BLOCK_TOKENS, Arrival
from jserve_tools.gpu_profiles.machines import PROFILES, load_machine, read_points
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
_MEASURED_COLUMNS = ("output_tokens", "queued_s", "first_token_s", "last_token_s")
_MAX_MODEL_LEN = 32_768  # of the measured runs


Figures = dict[str, float]
"""Results of a run: TTFT over requests, the mean over requests of a request's mean time
between tokens, and the time from the first arrival to the last token."""


def errors_percent(figures: Figures, truth: Figures) -> dict[str, float]:
    """Returns the deviation of each figure from the measured one, in percent."""
    return {name: 100.0 * (figures[name] / truth[name] - 1.0) for name in truth}


def _figures(
    arrival_s: np.ndarray,
    first_token_s: np.ndarray,
    last_token_s: np.ndarray,
    output_tokens: np.ndarray,
) -> Figures:
    """Returns the figures of times `[N]` and output lengths `[N]`, at least 2 each."""
    ttft_s = first_token_s - arrival_s
    tpot_s = (last_token_s - first_token_s) / (output_tokens - 1)
    p50_s, p90_s = np.percentile(ttft_s, (50, 90)).tolist()
    return {
        "ttft_mean_s": float(ttft_s.mean()),
        "ttft_p50_s": p50_s,
        "ttft_p90_s": p90_s,
        "tpot_mean_ms": float(tpot_s.mean() * 1e3),
        "makespan_s": float(last_token_s.max() - arrival_s.min()),
    }


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


def _measured(card: str) -> np.ndarray:
    """Returns the columns of a measured run, `[4, N]`."""
    return read_points(PROFILES / card / "measured_requests.csv", _MEASURED_COLUMNS).T


def measured_figures(card: str) -> Figures:
    """Returns the figures of a vLLM run of `RUNS`."""
    outputs, queued_s, first_s, last_s = _measured(card)
    return _figures(queued_s, first_s, last_s, outputs)


def ttft_differences_s(card: str, result: SimulationResult) -> np.ndarray:
    """Returns simulated minus measured TTFT of each request, `[N]` seconds."""
    _, queued_s, first_s, _ = _measured(card)
    found_s = np.array([one.ttft_s for one in result.outcomes], np.float64)
    differences_s: np.ndarray = found_s - (first_s - queued_s)
    return differences_s


def _num_blocks(row: TraceRow) -> int:
    return -(-row.prompt_tokens // PREFIX_BLOCK_TOKENS)


def simulated_run(
    rows: Sequence[TraceRow],
    cost_model: CostModel,
    *,
    enable_prefix_caching: bool = True,
    lag: int = 1,
) -> tuple[Figures, SimulationResult]:
    """Simulates `fcfs` on the requests of a trace, without padding.

    Args:
      enable_prefix_caching: Whether a preempted request may find its pages again.
      lag: Number of steps planned ahead, 0 or 1.
    """
    # Set up the scheduler with vLLM's limits.
    table = Continuous().table(
        max_num_seqs=cost_model.max_num_seqs,
        max_num_batched_tokens=cost_model.max_num_batched_tokens,
        block_tokens=1,
    )
    scheduler = Scheduler(
        policy=make_policy("fcfs"),
        buckets=table,
        ledger=KvLedger(
            num_pages=cost_model.num_kv_tokens // cost_model.page_size,
            page_size=cost_model.page_size,
            enable_prefix_caching=enable_prefix_caching,
        ),
        predictor=OraclePredictor(cost_model, table.block_tokens),
        max_num_seqs=cost_model.max_num_seqs,
        max_num_batched_tokens=cost_model.max_num_batched_tokens,
        max_model_len=_MAX_MODEL_LEN,
    )
    arrivals = [
        Arrival(
            request_id=f"{index:04d}",
            arrival_s=row.arrival_s,
            num_prompt_tokens=row.prompt_tokens,
            max_tokens=row.output_tokens,
            # No two prompts have content in common, which a cache would share.
            block_ids=range(1000 * index, 1000 * index + _num_blocks(row)),
        )
        for index, row in enumerate(rows)
    ]
    result = simulate(scheduler, cost_model, arrivals, lag=lag, max_spans=20.0)
    columns = [
        (one.arrival_s, one.token_times_s[0], one.token_times_s[-1], one.max_tokens)
        for one in result.outcomes
    ]
    figures = _figures(*np.array(columns).T)
    return figures, result
