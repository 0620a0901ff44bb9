"""The report of a simulation: what was simulated, on what machine, and the runs."""

import collections
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
    bounds_s: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for one in sample:
        for name, bound_s in dataclasses.asdict(one.slo).items():
            if bound_s is not None:
                bounds_s[one.service_class, name].append(bound_s)
    found: dict[str, dict[str, float]] = {
        name: {} for name in sorted({one.service_class for one in sample})
    }
    for (service_class, name), some_s in bounds_s.items():
        found[service_class][name] = statistics.fmean(some_s)
    return found


def simulation_report(
    *,
    command: Sequence[str],
    experiment: Experiment,
    cost_model: CostModel,
    block_tokens: int,
    seed: int,
    runs: Sequence[Mapping[str, Any]],
    fits: Sequence[Mapping[str, Any]],
    num_resumed: int,
) -> dict[str, Any]:
    """Returns the whole report, ready for `json.dumps`.

    Args:
      command: the program and its arguments.
      experiment: one of those simulated; they differ in policy, buckets and a step's
        token limit only.
      cost_model: the machine, without a policy's own limit.
      block_tokens: tokens in one prefill block.
      seed: draws the requests that are described.
      runs: one entry each.
      fits: how buckets were fitted, if any were.
      num_resumed: results that an earlier call had finished.
    """
    load = experiment.load
    sample = experiment.units(seed)
    what: dict[str, Any] = {
        "num_requests": len(sample),
        "lengths": describe_lengths(sample),
        "promises": _bounds_s(sample),
    }
    if load.config.one_shot:
        what["is_one_shot"] = True
    if load.config.trace is not None:
        what["trace"] = load.config.trace.name
    else:
        what["name"] = load.workload
        what["paper"] = {
            one.service_class.name: one.paper for one in WORKLOADS[load.workload]
        }
    unusual: dict[str, Any] = {}
    if experiment.num_instances > 1:
        unusual["num_instances"] = experiment.num_instances
        unusual["assignment"] = experiment.assignment
    if experiment.declared_max_tokens:
        unusual["declared_max_tokens"] = experiment.declared_max_tokens
        unusual["length_estimator"] = experiment.length_estimator
    return document(
        command=command,
        facts={"device": f"simulated {cost_model.name}"},
        workload=what,
        runs=runs,
        extra={
            "cost_model": {
                field.name: getattr(cost_model, field.name)
                for field in dataclasses.fields(CostModel)
            },
            "predictor": experiment.predictor,
            "lag": experiment.lag,
            "noise": experiment.noise,
            **unusual,
            "yardstick": experiment.yardstick,
            "staircase": priced_staircase(cost_model, block_tokens, runs),
            "fits": fits or None,
            "num_resumed": num_resumed,
        },
    )
