"""Routers beside each other, in simulation.

  python -m benchmarks.fleet.fleet --num_seeds=3

Each router sends the same requests to replicas of the simulated A100, equal or not, at
shares of the fleet's capacity, which is the rate at which `fcfs` completes requests
that are all there at once on one replica, times the sum of the speeds. Policy `ontime`;
snapshots are new unless said otherwise.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from benchmarks.study import Run, grid, interval, print_tables, simulate
from jserve.program import run_program
from jserve_sched.routing import ROUTERS

_TRACES = pathlib.Path("tools/jserve_tools/traces")
_KINDS: dict[str, dict[str, Any]] = {
    "chat": {"workload": "chat"},
    "heavy tail": {"workload": "heavy_tail"},
    "Azure conversation": {"trace": _TRACES / "azure_conv.csv", "poisson": True},
    "Azure code": {"trace": _TRACES / "azure_code.csv", "poisson": True},
}
_FLEETS = {
    "2": (1.0, 1.0),
    "4": (1.0,) * 4,
    "8": (1.0,) * 8,
    "4 unequal": (1.0, 1.0, 0.5, 0.25),
}
_AGES_S = (0.5, 1.0)
_FOLDER = pathlib.Path("out/fleet")


def main(argv: Sequence[str]) -> None:
    """Prints tables of attainment: mean over seeds, and its 95 % interval."""
    del argv
    values = flags.FLAGS
    loads = [float(one) for one in values.loads]
    kinds = {name: _KINDS[name] for name in values.kinds}
    same: dict[str, Any] = {"max_model_len": 65536, "num_requests": values.num_requests}
    at_once = [one | same | {"one_shot": True} for one in _without_poisson(kinds)]
    rates = [runs[0]["finished_per_s"] for runs in simulate(_FOLDER, at_once)]
    cells = [
        (kind, fleet, router, age_s)
        for kind in kinds
        for fleet in values.fleets
        for router, age_s in [
            *((one, 0.0) for one in ROUTERS),
            *(("slo", one) for one in _AGES_S),
        ]
    ]
    calls: list[dict[str, Any]] = []
    for kind, fleet, router, age_s in cells:
        speeds = _FLEETS[fleet]
        qps = rates[list(kinds).index(kind)] * sum(speeds)
        calls.append(
            kinds[kind]
            | same
            | {"policies": "ontime", "num_seeds": values.num_seeds, "seed": 51}
            | {"router": router, "snapshot_age_s": age_s}
            | {"num_instances": len(speeds), "instance_speeds": speeds}
            | {"qps": [f"{load * qps:.4g}" for load in loads]}
        )
    found = simulate(_FOLDER, calls)
    tables: dict[str, dict[tuple[str, str], str]] = {}
    for (kind, fleet, router, age_s), runs in zip(cells, found, strict=True):
        name = f"{router}, snapshots of {age_s:g} s" if age_s else router
        by_rate: dict[float, list[Run]] = {}
        for run in runs:
            by_rate.setdefault(run["qps"], []).append(run)
        for load, same_rate in zip(loads, by_rate.values(), strict=True):
            middle, low, high = interval([100 * one["attainment"] for one in same_rate])
            text = f"{middle:.1f} ({low:.1f} to {high:.1f})"
            tables.setdefault(f"{kind}, attained in %", {})[
                f"{fleet} at {load:g}", name
            ] = text
    print_tables({name: grid("replicas", one) for name, one in tables.items()})


def _without_poisson(kinds: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in one.items() if name != "poisson"}
        for one in kinds.values()
    ]


if __name__ == "__main__":
    flags.DEFINE_integer("num_requests", 1000, "Requests of a run.")
    flags.DEFINE_integer("num_seeds", 3, "Seeds of arrivals and requests.")
    flags.DEFINE_list("loads", ["0.8", "1", "1.2"], "Shares of the fleet's capacity.")
    flags.DEFINE_list("kinds", list(_KINDS), "Kinds of traffic.")
    flags.DEFINE_list("fleets", list(_FLEETS), "Fleets, by their names.")
    run_program(sys.modules[__name__])
