"""Fits buckets to the steps that a policy plans for a simulated load.

The load is served once with a bucket for every count of rows and blocks, so that no
edge hides the demand.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jserve_sched.buckets.strategies import Linear
from jserve_sched.buckets.table import BucketTable
from jserve_sched.fitting.costs import BucketCosts
from jserve_sched.fitting.demand import demand_from_steps, with_prior
from jserve_sched.fitting.fit import fit_buckets
from jserve_sched.simulation.workload import Arrival
from jserve_tools.fitting.step_logs import tbt_budgets
from jserve_tools.simulating.simulation import Experiment


def finest(experiment: Experiment) -> Experiment:
    """Returns the experiment with every bucket compiled, planned by exact times.

    A table of step times could not be filled for that many buckets.
    """
    model = experiment.cost_model
    table = Linear(row_gap=1, block_gap=1).table(
        max_num_seqs=model.max_num_seqs,
        max_num_batched_tokens=model.max_num_batched_tokens,
        block_tokens=experiment.buckets.block_tokens,
    )
    machine = dataclasses.replace(experiment.machine, predictor="oracle")
    return dataclasses.replace(experiment, buckets=table, machine=machine)


def fit_to_simulation(
    experiment: Experiment, arrivals: Sequence[Arrival], *, seed: int, max_programs: int
) -> tuple[BucketTable, dict[str, Any]]:
    """Fits buckets to the steps that a policy plans for a load.

    Of the experiment's buckets only `block_tokens` is used. `seed` draws the noise in
    step times.

    Returns:
      The table, and an entry of a report's `fits[].iterations`; see REPORT.md.

    Raises:
      ValueError: If `max_programs` is below 2, or no request fits the machine.
    """
    # Serve the load with every bucket.
    model, every_bucket = experiment.cost_model, finest(experiment)
    block_tokens = every_bucket.buckets.block_tokens
    steps = every_bucket.simulate(arrivals, seed, records_steps=True).steps
    if not steps:
        raise ValueError(
            f"no step ran: none of the {len(arrivals)} requests fits the machine"
        )

    def step_s(matrix: np.ndarray) -> np.ndarray:
        return model.step_s(matrix, block_tokens)

    # Fit edges to the demand of its steps.
    demand = demand_from_steps(
        steps,
        every_bucket.buckets,
        tbt_budgets=tbt_budgets(arrivals),
        step_s=step_s,
        page_size=model.page_size,
    )
    table = fit_buckets(
        with_prior(demand, every_bucket.buckets),
        step_s,
        every_bucket.buckets,
        page_size=model.page_size,
        max_programs=max_programs,
    )
    costs = BucketCosts(demand, step_s, table, page_size=model.page_size)
    return table, {
        "row_edges": table.row_edges,
        "block_edges": table.block_edges,
        "num_programs": table.num_programs,
        "num_steps": len(steps),
        **costs.summary(table),
    }
