"""The report of a simulation: what was simulated, on what machine, and the runs."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jserve_sched.cost_model import CostModel
from jserve_sched.workload import WORKLOADS, Arrival, describe_lengths
from jserve_tools.documents import document
from jserve_tools.simulation import Experiment
from jserve_tools.staircases import priced_staircase


def _bounds_s(sample: Sequence[Arrival]) -> dict[str, dict[str, float]]:
    """Returns the mean of each bound of the SLOs, seconds, by service class."""
    found: dict[str, dict[str, float]] = {}
    for name in sorted({one.service_class for one in sample}):
        slos = [one.slo for one in sample if one.service_class == name]
        found[name] = {
            bound: statistics.fmean(getattr(slo, bound) for slo in slos)
            for bound in ("ttft_s", "tbt_s", "ttlt_s")
            if getattr(slos[0], bound) is not None
        }
    return found


def simulation_report(
    experiment: Experiment,
    cost_model: CostModel,
    *,
    block_tokens: int,
    seed: int,
    command: Sequence[str],
    runs: Sequence[Mapping[str, Any]],
    **extra: Any,
) -> dict[str, Any]:
    """Returns the whole report, ready for `json.dumps`.

    Args:
      experiment: one of those simulated; they differ in policy, buckets and a step's
        token limit only.
      cost_model: the machine, without a policy's own limit.
      block_tokens: tokens in one prefill block.
      seed: draws the requests that are described.
      command: the program and its arguments.
      runs: one entry each.
      extra: further keys.
    """
    load, sample = experiment.load.config, experiment.units(seed)
    workload: dict[str, Any] = {
        "num_requests": len(sample),
        "lengths": describe_lengths(sample),
        "promises": _bounds_s(sample),
    }
    if load.one_shot:
        workload["is_one_shot"] = True
    if load.trace is not None:
        workload["trace"] = load.trace.name
    else:
        workload["name"] = experiment.load.workload
        workload["paper"] = {
            one.service_class.name: one.paper for one in WORKLOADS[workload["name"]]
        }
    names = ["predictor", "lag", "noise", "yardstick"]
    if experiment.num_instances > 1:
        names += ["num_instances", "assignment"]
    if experiment.declared_max_tokens:
        names += ["declared_max_tokens", "length_estimator"]
    limits = [field.name for field in dataclasses.fields(CostModel)]
    return document(
        command=command,
        facts={"device": f"simulated {cost_model.name}"},
        workload=workload,
        runs=runs,
        extra={
            "cost_model": {name: getattr(cost_model, name) for name in limits},
            "staircase": priced_staircase(cost_model, block_tokens, runs),
            **{name: getattr(experiment, name) for name in names},
            **extra,
        },
    )
