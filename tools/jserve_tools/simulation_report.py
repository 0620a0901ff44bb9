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

_MACHINE_FACTS = (
    "name",
    "num_kv_tokens",
    "page_size",
    "max_num_seqs",
    "max_num_batched_tokens",
)


def _promises(sample: Sequence[Arrival]) -> dict[str, dict[str, float]]:
    """Returns the mean of each bound that was promised, seconds, by service class."""
    bounds_s: dict[str, dict[str, list[float]]] = {}
    for one in sample:
        bounds = bounds_s.setdefault(one.service_class, {})
        for name, bound_s in dataclasses.asdict(one.slo).items():
            if bound_s is not None:
                bounds.setdefault(name, []).append(bound_s)
    return {
        name: {bound: statistics.fmean(some) for bound, some in bounds.items()}
        for name, bounds in sorted(bounds_s.items())
    }


def _unusual(experiment: Experiment) -> dict[str, Any]:
    """Returns what a plain simulation does not have."""
    found: dict[str, Any] = {}
    if experiment.num_instances > 1:
        found["num_instances"] = experiment.num_instances
        found["assignment"] = experiment.assignment
    if experiment.declared_max_tokens:
        found["declared_max_tokens"] = experiment.declared_max_tokens
        found["length_estimator"] = experiment.length_estimator
    return found


def simulation_report(
    *,
    command: Sequence[str],
    experiment: Experiment,
    cost_model: CostModel,
    block_tokens: int,
    sample: Sequence[Arrival],
    trace: str,
    workload: str,
    runs: Sequence[Mapping[str, Any]],
    fits: Sequence[Mapping[str, Any]],
    is_one_shot: bool,
    num_resumed: int,
) -> dict[str, Any]:
    """Returns the whole report, ready for `json.dumps`.

    Args:
      command: the program and its arguments.
      experiment: one of those simulated; they have all but policy, shapes and a step's
        token limit in common.
      cost_model: the machine, without a policy's own limit.
      block_tokens: tokens in one prefill block.
      sample: requests as one seed draws them.
      trace: name of the trace file; "" for a named workload.
      workload: name of the workload; "" for a trace.
      runs: one entry each.
      fits: how buckets were fitted, if any were.
      is_one_shot: whether all requests come at once.
      num_resumed: results that an earlier call had finished.
    """
    what: dict[str, Any] = {
        "num_requests": len(sample),
        "lengths": describe_lengths(sample),
        "promises": _promises(sample),
    }
    if is_one_shot:
        what["is_one_shot"] = True
    if trace:
        what["trace"] = trace
    else:
        what["name"] = workload
        what["paper"] = {
            one.service_class.name: one.paper for one in WORKLOADS[workload]
        }
    return document(
        command=command,
        facts={"device": f"simulated {cost_model.name}"},
        workload=what,
        runs=runs,
        extra={
            "cost_model": {name: getattr(cost_model, name) for name in _MACHINE_FACTS},
            "predictor": experiment.predictor,
            "lag": experiment.lag,
            "noise": experiment.noise,
            **_unusual(experiment),
            "yardstick": experiment.yardstick,
            "staircase": priced_staircase(cost_model, block_tokens, runs),
            "fits": fits or None,
            "num_resumed": num_resumed,
        },
    )
