"""Fits buckets to a simulated load, to the point where neither changes any more.

The one idea: edges change plans, and plans change what edges are best. So a load is
served again and again, each time with the shapes last fitted, and the steps of *all*
runs are pooled, each run with the same weight. The k-th run moves the pool by one part
in k, so the changes shrink, and edges that chase each other are averaged out. The
first run has every shape there is, so that no edge hides what was wanted.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jserve_sched.bucket_costs import costs_of
from jserve_sched.bucket_fitting import fit_buckets
from jserve_sched.bucket_strategies import STRATEGIES, Linear, PowersOfTwo
from jserve_sched.buckets import BucketTable
from jserve_sched.cost_model import CostModel
from jserve_sched.simulation_log import SimulatedStep
from jserve_sched.step_demand import (
    StepDemand,
    StepTimes,
    demand_from_steps,
    merge,
    prior_demand,
)
from jserve_sched.workload import Arrival
from jserve_tools.simulation import Experiment
from jserve_tools.step_logs import tbt_budgets

MAX_ITERATIONS = 8
LEAST_CHANGE = 0.001  # of the expected step time; smaller ones end the iteration
# On a server's log whose later half was far busier, fitted to the earlier half with 30
# programs: a tenth added 0.3 % to its steps and took 9 % off the later ones.
PRIOR_SHARE = 0.1
MAX_KINDS = 256  # entries of a demand in a bucket file
_MOST_BITS = 12  # counts below 4,096 as they are


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitIteration:
    """One turn: the load served, and shapes fitted to all steps so far.

    Attributes:
      table: the shapes fitted.
      num_steps: steps of this turn's run.
      expected_s: padded step time that the shapes make of the pooled steps, mean
        seconds.
      pad_share_time: share of the time of the steps that round up that is padding.
      change: of `expected_s` against the turn before, relative; None in the first.
    """

    table: BucketTable
    num_steps: int
    expected_s: float
    pad_share_time: float
    change: float | None

    def to_json(self) -> dict[str, Any]:
        """Returns it as a report holds it."""
        row: dict[str, Any] = {
            "row_edges": list(self.table.row_edges),
            "block_edges": list(self.table.block_edges),
            "num_programs": self.table.num_programs,
            "num_steps": self.num_steps,
            "expected_s": self.expected_s,
            "pad_share_time": self.pad_share_time,
        }
        return row if self.change is None else row | {"change": self.change}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitHistory:
    """What the iteration came to.

    Attributes:
      table: the shapes of the last turn.
      demand: the pooled steps that it was fitted to, without the prior.
      iterations: every turn.
      is_converged: whether it ended for want of change, not of turns.
    """

    table: BucketTable
    demand: StepDemand
    iterations: Sequence[FitIteration]
    is_converged: bool

    def to_json(self) -> dict[str, Any]:
        """Returns the turns as a report holds them."""
        return {
            "is_converged": self.is_converged,
            "iterations": [one.to_json() for one in self.iterations],
        }


def with_prior(
    demand: StepDemand, table: BucketTable, prior_share: float = PRIOR_SHARE
) -> StepDemand:
    """Returns a demand with a share of its weight moved to shapes of every size.

    Edges fitted to nothing but what was seen leave none above it: 13 rows, where 12
    were the most so far, would be padded to the largest. A small share costs little
    where the steps are as before, and keeps the first busier hour from a cliff.
    Steps with prefill and without give the same share each: else the many decode steps
    of long answers would bring more imagined prefill than there was.

    Args:
      demand: what was seen.
      table: any of the size to be fitted.
      prior_share: of the weight, 0 to 1; what `prior_demand` expects gets it.

    Raises:
      ValueError: if the share is out of range.
    """
    if not 0.0 <= prior_share < 1.0:
        raise ValueError(f"prior_share={prior_share} is not in 0..1, 1 excluded")
    if not prior_share:
        return demand
    prior = prior_demand(table.max_rows, table.max_blocks)
    parts = [demand.scaled((1.0 - prior_share) * demand.num_steps)]
    for has_prefill in (False, True):
        num_steps = float(np.sum(demand.weight[(demand.last_block > 0) == has_prefill]))
        if num_steps:
            expected = prior.where((prior.blocks > 0) == has_prefill)
            parts.append(expected.scaled(prior_share * num_steps))
    return merge(parts)


def step_times(cost_model: CostModel, block_tokens: int) -> StepTimes:
    """Returns a cost model as what prices steps in a fit."""
    return lambda matrix: cost_model.step_s(matrix, block_tokens)


def known_tables(
    *, max_num_seqs: int, max_num_batched_tokens: int, block_tokens: int
) -> dict[str, BucketTable]:
    """Returns what each strategy that needs no file makes of the limits, by name."""
    return {
        name: strategy().table(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            block_tokens=block_tokens,
        )
        for name, strategy in STRATEGIES.items()
    }


def default_max_programs(
    *, max_num_seqs: int, max_num_batched_tokens: int, block_tokens: int
) -> int:
    """Returns the programs that powers of two take at these limits."""
    table = PowersOfTwo().table(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_tokens=block_tokens,
    )
    return table.num_programs


def finest(experiment: Experiment) -> Experiment:
    """Returns the experiment with every shape compiled, planned by exact times.

    A table of step times could not be filled for so many shapes.
    """
    model = experiment.cost_model
    table = Linear(row_gap=1, block_gap=1).table(
        max_num_seqs=model.max_num_seqs,
        max_num_batched_tokens=model.max_num_batched_tokens,
        block_tokens=experiment.buckets.block_tokens,
    )
    return dataclasses.replace(experiment, buckets=table, predictor="oracle")


def fit_to_simulation(
    experiment: Experiment,
    arrivals: Sequence[Arrival],
    *,
    seed: int,
    max_programs: int,
    program_price_s: float = 0.0,
    prior_share: float = PRIOR_SHARE,
    max_iterations: int = MAX_ITERATIONS,
) -> FitHistory:
    """Fits buckets to what a policy plans for a load, and the plans to the buckets.

    Ends when the shapes are those just served, or when the expected step time changes
    by less than 0.1 %.

    Args:
      experiment: the machine, the policy and its predictor; of its buckets only
        `block_tokens` is heeded.
      arrivals: the load.
      seed: of the noise in step times.
      max_programs: most programs.
      program_price_s: seconds of expected step time that a program must save.
      prior_share: see `with_prior`.
      max_iterations: most turns.

    Raises:
      ValueError: if not even the largest shapes fit within `max_programs`, or no turn
        is asked for, or no request fits the machine.
    """
    if max_iterations < 1:
        raise ValueError(f"max_iterations={max_iterations} is below 1")
    model = experiment.cost_model
    block_tokens = experiment.buckets.block_tokens
    limits = {
        "max_num_seqs": model.max_num_seqs,
        "max_num_batched_tokens": model.max_num_batched_tokens,
        "block_tokens": block_tokens,
    }
    step_s = step_times(model, block_tokens)
    budgets = tbt_budgets(arrivals)
    demands: list[StepDemand] = []
    turns: list[FitIteration] = []
    current = finest(experiment)
    is_converged = False
    for _ in range(max_iterations):
        steps = simulated_steps(current, arrivals, seed)
        demand = demand_from_steps(
            steps,
            current.buckets,
            tbt_budgets=budgets,
            step_s=step_s,
            page_size=model.page_size,
        )
        demands.append(demand.scaled(1.0))
        pooled = merge(demands)
        table = fit_buckets(
            with_prior(pooled, current.buckets, prior_share),
            step_s,
            **limits,
            page_size=model.page_size,
            max_programs=max_programs,
            program_price_s=program_price_s,
            starts=[one.table for one in turns[-1:]],
        )
        costs = costs_of(pooled, step_s, table, page_size=model.page_size)
        expected_s = costs.expected_s(table)
        change = expected_s / turns[-1].expected_s - 1.0 if turns else None
        is_same = bool(turns) and table == turns[-1].table
        turns.append(
            FitIteration(
                table=table,
                num_steps=len(steps),
                expected_s=expected_s,
                pad_share_time=costs.pad_share(table),
                change=change,
            )
        )
        if is_same or (change is not None and abs(change) < LEAST_CHANGE):
            is_converged = True
            break
        current = dataclasses.replace(experiment, buckets=table)
    return FitHistory(
        table=turns[-1].table,
        demand=pooled,
        iterations=turns,
        is_converged=is_converged,
    )


def simulated_steps(
    experiment: Experiment, arrivals: Sequence[Arrival], seed: int
) -> Sequence[SimulatedStep]:
    """Returns the steps that serve a load."""
    steps = experiment.simulate(arrivals, seed, records_steps=True).steps
    if not steps:
        raise ValueError(
            f"no step ran: none of the {len(arrivals)} requests fits the machine"
        )
    return steps


def compact(demand: StepDemand, *, max_kinds: int = MAX_KINDS) -> StepDemand:
    """Returns about the same demand in fewer entries, for a file.

    Counts are rounded up to as many leading bits as leave so few entries, at least to
    one; pages are the mean of those put together.

    Args:
      demand: any.
      max_kinds: entries wanted at most.
    """
    for num_bits in range(_MOST_BITS, 0, -1):
        found = _rounded(demand, num_bits)
        if len(found.weight) <= max_kinds:
            break
    return found


def _rounded(demand: StepDemand, num_bits: int) -> StepDemand:
    """Returns a demand whose counts have `num_bits` leading bits, one entry a kind."""
    counts = np.stack((demand.rows, demand.blocks, demand.last_block), axis=1)
    # frexp: counts lie in [2**(e-1), 2**e), so this is what the last bit kept is worth.
    unit = np.exp2(np.maximum(np.frexp(counts)[1] - num_bits, 0))
    most = np.max(counts, axis=0)[[0, 2, 2]]  # both ends of a wish have one limit
    rounded = np.minimum(np.ceil(counts / unit) * unit, most)
    keys = np.concatenate((rounded, demand.is_limited[:, None]), axis=1)
    kinds, places = np.unique(keys.astype(np.int64), axis=0, return_inverse=True)
    places = places.reshape(-1)
    weight = np.bincount(places, demand.weight)
    decode_pages, block_pages = (
        np.rint(np.bincount(places, demand.weight * pages) / weight).astype(np.int64)
        for pages in (demand.decode_pages, demand.block_pages)
    )
    return StepDemand(
        rows=kinds[:, 0],
        blocks=kinds[:, 1],
        last_block=kinds[:, 2],
        is_limited=kinds[:, 3].astype(bool),
        decode_pages=decode_pages,
        block_pages=block_pages,
        weight=weight,
    )
