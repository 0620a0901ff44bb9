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
    num_resumed: int,
) -> dict[str, Any]:
    """Returns the whole report, ready for `json.dumps`.

    Args:
      command: the program and its arguments.
      experiment: one of those simulated; they have predictor, lag and noise in common.
      cost_model: the machine, without a policy's own limit.
      block_tokens: tokens in one prefill block.
      sample: requests as one seed draws them.
      trace: name of the trace file; "" for a named workload.
      workload: name of the workload; "" for a trace.
      runs: one entry each.
      fits: how buckets were fitted, if any were.
      num_resumed: results that an earlier call had finished.
    """
    what: dict[str, Any] = {
        "num_requests": len(sample),
        "lengths": describe_lengths(sample),
        "promises": _promises(sample),
    }
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
            "yardstick": experiment.yardstick,
            "staircase": priced_staircase(cost_model, block_tokens, runs),
            "fits": fits or None,
            "num_resumed": num_resumed,
        },
    )
