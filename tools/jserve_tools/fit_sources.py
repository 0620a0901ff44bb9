"""Where a bucket fit has its steps from: a server's log, or a simulated load.

The one idea: both come down to what two halves of the steps want and what steps cost,
so strategies are compared the same way whatever the steps are from.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jserve_sched.bucket_strategies import PowersOfTwo
from jserve_sched.buckets import BucketTable, table_from_json
from jserve_sched.step_demand import (
    DemandStep,
    StepDemand,
    StepTimes,
    demand_from_steps,
    merge,
)
from jserve_sched.table_predictor import TablePredictor
from jserve_sched.workload import Arrival
from jserve_tools.bucket_fits import finest, simulated_steps, step_times
from jserve_tools.machines import load_machine
from jserve_tools.simulation import Experiment
from jserve_tools.step_logs import (
    StepLogFile,
    Stretch,
    TbtBudgets,
    read_step_logs,
    tbt_budgets,
)

MIN_STEPS = 200  # a hundred in each half
_LOG = logging.getLogger("jserve")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulation:
    """A load that can be served again, with other shapes.

    Attributes:
      experiment: machine and policy; of its buckets only `block_tokens` is heeded.
      arrivals: the requests.
      seed: of the noise in step times.
    """

    experiment: Experiment
    arrivals: Sequence[Arrival]
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSource:
    """Steps, and what they cost.

    Attributes:
      facts: where they come from, as JSON can hold it.
      limits: `max_num_seqs`, `max_num_batched_tokens` and `block_tokens`.
      page_size: tokens in one KV page.
      step_s: how long steps take.
      earlier: what the first half of the steps wants.
      later: what the second half wants.
      num_steps: steps in both.
      simulation: what a fit goes on with; None for recorded steps.
    """

    facts: Mapping[str, Any]
    limits: Mapping[str, int]
    page_size: int
    step_s: StepTimes
    earlier: StepDemand
    later: StepDemand
    num_steps: int
    simulation: Simulation | None = None


def recorded_source(paths: Sequence[pathlib.Path], cost_model: str | None) -> FitSource:
    """Reads step logs.

    Args:
      paths: the files, from the earliest to the latest.
      cost_model: what steps cost, as `load_machine` reads it; None for the step times
        in the log.

    Raises:
      ValueError: if a log is no good, or holds too few steps, or no step times and no
        cost model is given, or one for other blocks or pages.
      OSError: if a file cannot be read.
    """
    log = read_step_logs(paths)
    _check_enough(log.num_steps)
    step_s = _profiled(log, cost_model) if cost_model else _measured(log)
    page_size, budgets = log.limits.page_size, log.tbt_budgets

    def demand(stretches: Sequence[Stretch]) -> StepDemand:
        return merge(
            [
                _demand(one.steps, one.table, budgets, step_s, page_size)
                for one in stretches
            ]
        )

    earlier, later = log.halves()
    limits = dataclasses.asdict(log.limits)
    del limits["page_size"]
    demands = _within([demand(earlier), demand(later)], limits)
    facts: dict[str, Any] = {
        "source": "recorded",
        "step_logs": [path.name for path in paths],
        "policies": sorted({str(one.header.get("policy")) for one in log.stretches}),
        "step_times": cost_model or "the log's",
    }
    ratio = _measured_over_predicted(log)
    return FitSource(
        facts=facts if ratio is None else facts | {"measured_over_predicted": ratio},
        limits=limits,
        page_size=page_size,
        step_s=step_s,
        earlier=demands[0],
        later=demands[1],
        num_steps=log.num_steps,
    )


def simulated_source(simulation: Simulation) -> FitSource:
    """Serves a load with every shape compiled.

    Raises:
      ValueError: if the load makes too few steps.
    """
    every_shape = finest(simulation.experiment)
    model, table = every_shape.cost_model, every_shape.buckets
    steps = simulated_steps(every_shape, simulation.arrivals, simulation.seed)
    _check_enough(len(steps))
    step_s = step_times(model, table.block_tokens)
    budgets = tbt_budgets(simulation.arrivals)
    middle = len(steps) // 2
    earlier, later = (
        _demand(half, table, budgets, step_s, model.page_size)
        for half in (steps[:middle], steps[middle:])
    )
    return FitSource(
        facts={
            "source": "simulated",
            "cost_model": model.name,
            "policy": every_shape.policy,
            "num_requests": len(simulation.arrivals),
            "seed": simulation.seed,
        },
        limits={
            "max_num_seqs": model.max_num_seqs,
            "max_num_batched_tokens": model.max_num_batched_tokens,
            "block_tokens": table.block_tokens,
        },
        page_size=model.page_size,
        step_s=step_s,
        earlier=earlier,
        later=later,
        num_steps=len(steps),
        simulation=simulation,
    )


def _within(
    demands: Sequence[StepDemand], limits: Mapping[str, int]
) -> list[StepDemand]:
    """Returns demands with no more blocks than the tables that are fitted have.

    Edges of a user's own may hold more of them beside few rows. A warning says how
    many such steps there are.
    """
    most = PowersOfTwo().table(**limits).max_blocks
    is_over = [one.last_block > most for one in demands]
    num_over = sum(
        float(np.sum(one.weight[over]))
        for one, over in zip(demands, is_over, strict=True)
    )
    if num_over:
        _LOG.warning(
            "%.0f of %.0f steps want up to %d prefill blocks, more than the %d that "
            "fit beside max_num_seqs=%d; they count as steps of %d",
            num_over,
            sum(one.num_steps for one in demands),
            max(int(np.max(one.last_block)) for one in demands),
            most,
            limits["max_num_seqs"],
            most,
        )
    return [
        dataclasses.replace(
            one,
            blocks=np.minimum(one.blocks, most),
            last_block=np.minimum(one.last_block, most),
        )
        for one in demands
    ]


def _check_enough(num_steps: int) -> None:
    if num_steps < MIN_STEPS:
        raise ValueError(
            f"{num_steps} steps are too few to fit buckets to: at least {MIN_STEPS}"
        )


def _demand(
    steps: Sequence[DemandStep],
    table: BucketTable,
    budgets: TbtBudgets,
    step_s: StepTimes,
    page_size: int,
) -> StepDemand:
    return demand_from_steps(
        steps, table, tbt_budgets=budgets, step_s=step_s, page_size=page_size
    )


def _profiled(log: StepLogFile, cost_model: str) -> StepTimes:
    """Returns the step times of a machine that agrees with the log."""
    machine = load_machine(cost_model)
    limits = log.limits
    if machine.block_tokens is not None:
        for name, profiled, recorded in (
            ("block_tokens", machine.block_tokens, limits.block_tokens),
            ("page_size", machine.cost_model.page_size, limits.page_size),
        ):
            if profiled != recorded:
                raise ValueError(
                    f"the steps were recorded with {name}={recorded}, but "
                    f"cost_model={cost_model!r} was measured with {profiled}"
                )
    return step_times(machine.cost_model, limits.block_tokens)


def _measured(log: StepLogFile) -> StepTimes:
    """Returns the step times that the server measured at its start."""
    times = log.step_times
    if times is None:
        raise ValueError(
            "the step log holds no step times, which a server adds once it is warm: "
            "give cost_model"
        )
    most_pages = max(
        max(step.decode_pages, step.block_pages)
        for one in log.stretches
        for step in one.steps
    )
    try:
        table = table_from_json(json.dumps(times["buckets"]))
        predictor = TablePredictor(table, max_pages_per_row=most_pages)
        if not predictor.load_json(dict(times)):
            raise ValueError("they do not agree with their own buckets")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the step times in the step log: {error}") from None
    return predictor.predict


def _measured_over_predicted(log: StepLogFile) -> float | None:
    """Returns the steps' measured time in terms of what the server expected."""
    steps = [step for one in log.stretches for step in one.steps]
    predicted_s = sum(step.bucket_s for step in steps)
    if not predicted_s:
        return None
    return sum(step.duration_s for step in steps) / predicted_s
