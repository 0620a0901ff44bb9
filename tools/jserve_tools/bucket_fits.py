"""Fits buckets to a simulated load, to the point where neither changes any more.

Edges change plans, and plans change what edges are best. So a load is served again and
again, each time with the shapes last fitted, and the steps of *all* runs are pooled,
each run with the same weight. The k-th run moves the pool by one part in k, so the
changes shrink, and edges that chase each other are averaged out. The first run has
every shape there is, so that no edge hides what was wanted.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jserve_sched.bucket_costs import BucketCosts
from jserve_sched.bucket_fitting import fit_buckets
from jserve_sched.bucket_strategies import Linear
from jserve_sched.buckets import BucketTable
from jserve_sched.step_demand import (
    StepDemand,
    demand_from_steps,
    merge,
    with_prior,
)
from jserve_sched.workload import Arrival
from jserve_tools.simulation import Experiment
from jserve_tools.step_logs import tbt_budgets

MAX_ITERATIONS = 8
LEAST_CHANGE = 0.001  # of the expected step time; smaller ones end the iteration


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitHistory:
    """What the iteration came to.

    Attributes:
      table: Shapes of the last turn.
      demand: Pooled steps that it was fitted to, without the prior.
      iterations: Every turn, as a report holds it; see REPORT.md.
      is_converged: Whether it ended for want of change, not of turns.
    """

    table: BucketTable
    demand: StepDemand
    iterations: Sequence[Mapping[str, Any]]
    is_converged: bool

    def to_json(self) -> dict[str, Any]:
        """Returns the turns as a report holds them."""
        return {"is_converged": self.is_converged, "iterations": [*self.iterations]}


def finest(experiment: Experiment) -> Experiment:
    """Returns the experiment with every shape compiled, planned by exact times.

    A table of step times could not be filled for that many shapes.
    """
    model = experiment.cost_model
    table = Linear(row_gap=1, block_gap=1).table(
        max_num_seqs=model.max_num_seqs,
        max_num_batched_tokens=model.max_num_batched_tokens,
        block_tokens=experiment.buckets.block_tokens,
    )
    return dataclasses.replace(experiment, buckets=table, predictor="oracle")


def fit_to_simulation(
    experiment: Experiment, arrivals: Sequence[Arrival], *, seed: int, max_programs: int
) -> FitHistory:
    """Fits buckets to what a policy plans for a load, and the plans to the buckets.

    Ends when the shapes are those just served, or when the expected step time changes
    by less than 0.1 %, or after 8 turns.

    Args:
      experiment: The machine, the policy and its predictor; of its buckets only
        `block_tokens` is read.
      arrivals: The load.
      seed: Seed of the noise in step times.
      max_programs: Most programs.

    Raises:
      ValueError: If `max_programs` is below 2, or no request fits the machine.
    """
    model, block_tokens = experiment.cost_model, experiment.buckets.block_tokens

    def step_s(matrix: np.ndarray) -> np.ndarray:
        return model.step_s(matrix, block_tokens)

    demands: list[StepDemand] = []
    turns: list[dict[str, Any]] = []
    current = finest(experiment)
    is_converged = False
    while not is_converged and len(turns) < MAX_ITERATIONS:
        steps = current.simulate(arrivals, seed, records_steps=True).steps
        if not steps:
            raise ValueError(
                f"no step ran: none of the {len(arrivals)} requests fits the machine"
            )
        demand = demand_from_steps(
            steps,
            current.buckets,
            tbt_budgets=tbt_budgets(arrivals),
            step_s=step_s,
            page_size=model.page_size,
        )
        demands.append(demand.scaled(1.0))
        pooled = merge(demands)
        table = fit_buckets(
            with_prior(pooled, current.buckets),
            step_s,
            max_num_seqs=model.max_num_seqs,
            max_num_batched_tokens=model.max_num_batched_tokens,
            block_tokens=block_tokens,
            page_size=model.page_size,
            max_programs=max_programs,
        )
        costs = BucketCosts(pooled, step_s, table, page_size=model.page_size)
        turn: dict[str, Any] = {
            "row_edges": list(table.row_edges),
            "block_edges": list(table.block_edges),
            "num_programs": table.num_programs,
            "num_steps": len(steps),
            "expected_s": costs.expected_s(table),
            "pad_share_time": costs.pad_share(table),
        }
        if turns:
            turn["change"] = turn["expected_s"] / turns[-1]["expected_s"] - 1.0
            is_converged = (
                table == current.buckets or abs(turn["change"]) < LEAST_CHANGE
            )
        turns.append(turn)
        current = dataclasses.replace(experiment, buckets=table)
    return FitHistory(
        table=table, demand=pooled, iterations=turns, is_converged=is_converged
    )
