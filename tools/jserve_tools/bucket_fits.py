"""Fits buckets to what a policy plans for a simulated load.

The load is served once with every shape there is, so that no edge hides what was
wanted. Serving it again with the shapes fitted, and fitting to both runs, gained
nothing where it was tried.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jserve_sched.bucket_costs import BucketCosts
from jserve_sched.bucket_fitting import fit_buckets
from jserve_sched.bucket_strategies import Linear
from jserve_sched.buckets import BucketTable
from jserve_sched.step_demand import demand_from_steps, with_prior
from jserve_sched.workload import Arrival
from jserve_tools.simulation import Experiment
from jserve_tools.step_logs import tbt_budgets


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulatedFit:
    """Shapes fitted to a simulated load.

    Attributes:
      table: The shapes.
      num_steps: Steps of the run that they were fitted to.
      expected_s: Mean padded time of these steps in the shapes, seconds.
      pad_share_time: Share of the time of the steps that round up that is padding.
    """

    table: BucketTable
    num_steps: int
    expected_s: float
    pad_share_time: float

    def to_json(self) -> dict[str, Any]:
        """Returns the fit as a report holds it; see REPORT.md."""
        fit = {
            "row_edges": list(self.table.row_edges),
            "block_edges": list(self.table.block_edges),
            "num_programs": self.table.num_programs,
            "num_steps": self.num_steps,
            "expected_s": self.expected_s,
            "pad_share_time": self.pad_share_time,
        }
        return {"iterations": [fit]}


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
    machine = dataclasses.replace(experiment.machine, predictor="oracle")
    return dataclasses.replace(experiment, buckets=table, machine=machine)


def fit_to_simulation(
    experiment: Experiment, arrivals: Sequence[Arrival], *, seed: int, max_programs: int
) -> SimulatedFit:
    """Fits buckets to the steps that a policy plans for a load.

    Of the experiment's buckets only `block_tokens` is read. `seed` draws the noise in
    step times.

    Raises:
      ValueError: If `max_programs` is below 2, or no request fits the machine.
    """
    model, every_shape = experiment.cost_model, finest(experiment)
    steps = every_shape.simulate(arrivals, seed, records_steps=True).steps
    if not steps:
        raise ValueError(
            f"no step ran: none of the {len(arrivals)} requests fits the machine"
        )

    def step_s(matrix: np.ndarray) -> np.ndarray:
        return model.step_s(matrix, every_shape.buckets.block_tokens)

    demand = demand_from_steps(
        steps,
        every_shape.buckets,
        tbt_budgets=tbt_budgets(arrivals),
        step_s=step_s,
        page_size=model.page_size,
    )
    table = fit_buckets(
        with_prior(demand, every_shape.buckets),
        step_s,
        max_num_seqs=model.max_num_seqs,
        max_num_batched_tokens=model.max_num_batched_tokens,
        block_tokens=every_shape.buckets.block_tokens,
        page_size=model.page_size,
        max_programs=max_programs,
    )
    costs = BucketCosts(demand, step_s, table, page_size=model.page_size)
    return SimulatedFit(
        table=table,
        num_steps=len(steps),
        expected_s=costs.expected_s(table),
        pad_share_time=costs.pad_share(table),
    )
