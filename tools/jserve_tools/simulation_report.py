"""The report of a simulation: what was simulated, on what machine, and the runs."""

from collections.abc import Mapping, Sequence
from typing import Any

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


def simulation_report(
    *,
    command: Sequence[str],
    experiment: Experiment,
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
      experiment: one of those simulated; they have machine and predictor in common.
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
    }
    if trace:
        what["trace"] = trace
    else:
        what["name"] = workload
        what["paper"] = {
            one.service_class.name: one.paper for one in WORKLOADS[workload]
        }
    machine = experiment.cost_model
    return document(
        command=command,
        facts={"device": f"simulated {machine.name}"},
        workload=what,
        runs=runs,
        extra={
            "cost_model": {name: getattr(machine, name) for name in _MACHINE_FACTS},
            "predictor": experiment.predictor,
            "lag": experiment.lag,
            "noise": experiment.noise,
            "yardstick": experiment.yardstick,
            "staircase": priced_staircase(machine, block_tokens),
            "fits": fits or None,
            "num_resumed": num_resumed,
        },
    )
