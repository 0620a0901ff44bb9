"""Fits buckets to the steps that servers recorded, and judges the fit.

Edges fitted to some steps look good on those steps, so a fit to the earlier half is
judged on the later half, against the default strategy `pow2`.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jserve_sched.bucket_costs import BucketCosts
from jserve_sched.bucket_fitting import fit_buckets
from jserve_sched.bucket_growth import limit_programs
from jserve_sched.bucket_strategies import PowersOfTwo
from jserve_sched.buckets import BucketTable
from jserve_sched.step_demand import StepDemand, StepTimes, compact, merge, with_prior
from jserve_tools.fit_config import FitConfig
from jserve_tools.machines import load_machine
from jserve_tools.step_logs import RecordedSteps, read_step_logs

MIN_STEPS = 200  # a hundred in each half
_LOG = logging.getLogger("jserve")


def fit(config: FitConfig) -> dict[str, Any]:
    """Fits buckets to recorded steps.

    Returns:
      The bucket file: edges, `demand` for a server that starts with few programs, and
      `fit`, where the edges come from and how they did on steps not fitted to.

    Raises:
      ValueError: If a log, the cost model or a limit is invalid, or the fitted table
        loses on the later half of the steps and `force` is off.
      OSError: If a file cannot be read.
    """
    log = read_step_logs(config.step_log)
    num_steps = len(log.steps)
    if num_steps < MIN_STEPS:
        raise ValueError(
            f"{num_steps} steps are too few to fit buckets to: at least {MIN_STEPS}"
        )
    step_s = _step_times(log, config.cost_model)
    limits = log.limits
    page_size = limits.pop("page_size")
    pow2 = PowersOfTwo().table(**limits)
    max_programs = config.max_programs or pow2.num_programs

    def fitted(demand: StepDemand) -> BucketTable:
        return fit_buckets(
            with_prior(demand, pow2, config.prior_share),
            step_s,
            **limits,
            page_size=page_size,
            max_programs=max_programs,
        )

    def costs(demand: StepDemand) -> BucketCosts:
        return BucketCosts(demand, step_s, pow2, page_size=page_size)

    earlier, later = _halves(log, step_s, pow2)
    demand = merge([earlier, later])
    halves = {"earlier": costs(earlier), "later": costs(later)}
    rival = limit_programs(pow2, max_programs, halves["earlier"].expected_s)
    comparison = [
        _judge("pow2", rival, halves),
        _judge("fitted", fitted(earlier), halves),
    ]
    _check_gain(comparison, is_forced=config.force)
    table, costs_of_all = fitted(demand), costs(demand)
    predicted_s = sum(step.bucket_s for step in log.steps)
    ratio = sum(step.duration_s for step in log.steps) / (predicted_s or float("nan"))
    return {
        **table.to_json(),
        "demand": compact(demand).to_json(),
        "fit": {
            "source": "recorded",
            "step_logs": [path.name for path in config.step_log],
            "policies": sorted(
                {str(one.header.get("policy")) for one in log.stretches}
            ),
            "step_times": config.cost_model or "the log's",
            **({"measured_over_predicted": ratio} if predicted_s else {}),
            "num_steps": num_steps,
            "num_programs": table.num_programs,
            "expected_s": costs_of_all.expected_s(table),
            "pad_share_time": costs_of_all.pad_share(table),
            "prior_share": config.prior_share,
            "limits": limits,
            "page_size": page_size,
            "comparison": comparison,
        },
    }


def _step_times(log: RecordedSteps, cost_model: str | None) -> StepTimes:
    """Returns the log's own step times, or those of a machine that agrees with it."""
    if cost_model is None:
        return log.measured()
    machine = load_machine(cost_model)
    if machine.block_tokens:
        for name in ("block_tokens", "page_size"):
            profiled = getattr(machine, name)
            if profiled != log.limits[name]:
                raise ValueError(
                    f"the steps were recorded with {name}={log.limits[name]}, but "
                    f"cost_model={cost_model!r} was measured with {profiled}"
                )
    block_tokens = log.limits["block_tokens"]
    return lambda matrix: machine.step_s(matrix, block_tokens)


def _halves(
    log: RecordedSteps, step_s: StepTimes, table: BucketTable
) -> list[StepDemand]:
    """Returns what the earlier and the later half want of tables of a size.

    Edges of a user's own may hold more blocks beside few rows than a fitted table has.
    """
    middle, most = len(log.steps) // 2, table.max_blocks
    halves = [log.demand(step_s, stop=middle), log.demand(step_s, middle)]
    widest = max(int(np.max(one.last_block)) for one in halves)
    if widest > most:
        _LOG.warning(
            "steps want up to %d prefill blocks, more than the %d that fit beside %d "
            "rows; they count as steps of %d",
            *(widest, most, table.max_rows, most),
        )
    return [
        dataclasses.replace(
            one,
            blocks=np.minimum(one.blocks, most),
            last_block=np.minimum(one.last_block, most),
        )
        for one in halves
    ]


def _judge(
    name: str, table: BucketTable, halves: Mapping[str, BucketCosts]
) -> dict[str, Any]:
    return {
        "bucket_strategy": name,
        "num_programs": table.num_programs,
        **{
            half: {
                "expected_s": costs.expected_s(table),
                "pad_share_time": costs.pad_share(table),
            }
            for half, costs in halves.items()
        },
    }


def _check_gain(comparison: Sequence[Mapping[str, Any]], *, is_forced: bool) -> None:
    """Raises ValueError if the fitted table loses on the later half, unless forced."""
    pow2_s, fitted_s = (row["later"]["expected_s"] for row in comparison)
    if fitted_s <= pow2_s:
        return
    text = (
        f"on the later half of the steps fitted buckets take {fitted_s * 1e3:.3f} ms a "
        f"step, more than the {pow2_s * 1e3:.3f} ms of pow2"
    )
    if not is_forced:
        raise ValueError(f"{text}: nothing is written without --force")
    _LOG.warning("%s", text)
