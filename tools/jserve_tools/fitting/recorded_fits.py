"""Fits buckets to the steps that servers recorded."""

import dataclasses
import itertools
import json
import logging
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from jserve_sched.buckets.strategies import PowersOfTwo
from jserve_sched.buckets.table import BucketTable, table_from_json
from jserve_sched.fitting.costs import BucketCosts
from jserve_sched.fitting.demand import (
    StepDemand,
    demand_from_steps,
    merge,
    with_prior,
)
from jserve_sched.fitting.fit import fit_buckets
from jserve_sched.timing.predictor import Predict
from jserve_sched.timing.table import TablePredictor
from jserve_tools.fitting.config import FitConfig
from jserve_tools.fitting.step_logs import LIMITS, Logged, read_step_logs
from jserve_tools.gpu_profiles.machines import load_machine

MIN_STEPS = 200
_LOG = logging.getLogger("jserve")


def fit(config: FitConfig) -> dict[str, Any]:
    """Fits buckets to recorded steps.

    Returns:
      The bucket file: the edges, and `fit`, which says what they were fitted to.

    Raises:
      ValueError: If a log, the cost model or a limit is invalid.
      OSError: If a file cannot be read.
    """
    # Read the steps, their limits and their times.
    steps = read_step_logs(config.step_log)
    if len(steps) < MIN_STEPS:
        raise ValueError(
            f"{len(steps)} steps are too few to fit buckets to: at least {MIN_STEPS}"
        )
    header, _ = steps[-1]
    limits = {name: header[name] for name in LIMITS}
    step_s = _step_times(steps, config.cost_model)
    page_size = limits.pop("page_size")
    pow2 = PowersOfTwo().table(**limits)
    # Fit them.
    demand = _demand(steps, header, step_s, pow2)
    table = fit_buckets(
        with_prior(demand, pow2, config.prior_share),
        step_s,
        pow2,
        page_size=page_size,
        max_programs=config.max_programs or pow2.num_programs,
    )
    costs = BucketCosts(demand, step_s, pow2, page_size=page_size)
    return {
        **table.to_json(),
        "fit": {
            "source": "recorded",
            "step_logs": [path.name for path in config.step_log],
            "policies": sorted({str(one.get("policy")) for one, _ in steps}),
            "step_times": config.cost_model or "the log's",
            "num_steps": len(steps),
            "num_programs": table.num_programs,
            **costs.summary(table),
            "prior_share": config.prior_share,
            "limits": limits,
            "page_size": page_size,
        },
    }


def _step_times(steps: Sequence[Logged], cost_model: str | None) -> Predict:
    """Returns the step times of the log, or of a cost model of equal block size."""
    if cost_model is None:
        return _measured(steps)
    machine, header = load_machine(cost_model), steps[0][0]
    sizes = (machine.block_tokens, machine.page_size)
    recorded = (header["block_tokens"], header["page_size"])
    if machine.block_tokens and sizes != recorded:
        raise ValueError(
            f"block_tokens, page_size = {recorded} in the step log, but {sizes} in "
            f"cost_model={cost_model!r}"
        )
    return lambda matrix: machine.step_s(matrix, recorded[0])


def _measured(steps: Sequence[Logged]) -> Predict:
    """Returns the newest step times that a server measured when it was warm."""
    known = (one.get("step_times") for one, _ in reversed(steps))
    times = next(filter(None, known), None)
    if times is None:
        raise ValueError(
            "the step log holds no step times, which a server adds once it is warm:"
            " give cost_model"
        )
    try:
        table = table_from_json(json.dumps(times["buckets"]))
        predictor = TablePredictor(table)
        if not predictor.load_json(dict(times)):
            raise ValueError("they do not agree with their own buckets")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the step times in the step log: {error}") from None
    return predictor.predict


def _demand(
    steps: Sequence[Logged],
    header: dict[str, Any],
    step_s: Predict,
    table: BucketTable,
) -> StepDemand:
    """Returns the demand of steps for tables with the largest edges of `table`.

    The TBT objectives of the service classes in `header` are the limits that may have
    ended a step. A recorded table may have had more prefill blocks beside few rows than
    a fitted table can have; such steps count as steps of the most.
    """
    budgets = [
        (float(row["tbt_s"]), float(row.get("share", 1.0)))
        for row in header.get("service_classes") or ()
        if row.get("tbt_s") is not None
    ]
    demand = merge(
        [
            demand_from_steps(
                (step for _, step in group),
                ran_in["table"],
                tbt_budgets=budgets,
                step_s=step_s,
                page_size=header["page_size"],
            )
            for ran_in, group in itertools.groupby(steps, operator.itemgetter(0))
        ]
    )
    most, widest = table.max_blocks, np.max(demand.blocks)
    if widest > most:
        _LOG.warning(
            "steps have up to %d prefill blocks, more than the %d that fit beside %d "
            "rows; they count as steps of %d",
            *(widest, most, table.max_rows, most),
        )
    return dataclasses.replace(demand, blocks=np.minimum(demand.blocks, most))
