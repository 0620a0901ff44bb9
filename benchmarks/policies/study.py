"""Compares the policies on jserve's kinds of load, simulated on an A100.

  python -m benchmarks.policies.study
  python -m benchmarks.policies.study --num_requests=40 --seeds=1 --kinds=tight

Prints the tables; an interrupted call goes on where it stopped. Nothing was tuned on
the seeds. Shares are in %, over all counted requests of the seeds; of differences the
95 % interval is Student's, paired by seed.
"""

import itertools
import math
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from scipy.optimize import isotonic_regression

from benchmarks.study import Run, grid, interval, mean, print_tables, simulate
from jserve.program import run_program

# Capacity in requests a second: fcfs, no buckets, 1,200 requests there at once, until
# four fifths of them are done.
KINDS = {
    "chat": 23.1,
    "documents": 11.1,
    "heavy_tail": 4.42,
    "bursts": 6.32,
    "reasoning_code": 5.49,
    "tight": 5.18,
}
TURNS, TURNS_QPS = "interactive_chat", 1.8  # without a prefix cache, of 600 requests
TUNED = tuple(f"qoserve:max_chunk_tokens={limit}" for limit in (128, 256, 512))
PROSERVE = "benchmarks.policies.slide_batching.SlideBatching"
MORE = ("ontime", "sliding", TUNED[-1], PROSERVE, "fcfs")
FITTED = ("ontime", "sliding", *TUNED, PROSERVE, "fcfs")
ALL = (*FITTED, "sliding:published=on", "qoserve", "annealing")
REAL: dict[str, Any] = {
    **{"predictor": "table", "noise": 0.05, "bias": 0.1, "stall_share": 0.001},
    **{"declared_max_tokens": 2048, "length_estimator": "mean"},
}
CONDITIONS = {
    "real": {"bucket_strategies": "pow2", "policies": ALL, **REAL},
    "exact": {"bucket_strategies": "none", "policies": ALL},
    "fitted": {"bucket_strategies": "fitted", "policies": FITTED, **REAL},
}
LENGTHS = ("mean", "oracle", "max_tokens", "quantile:q=0.9")
WITH_TTLT = "reasoning_code"  # lengths change nothing where no end is bounded
LOADS = (0.85, 1.3, 2.0)
ADMISSION_LOADS = (1.5, 2.0, 5.0)
GOODPUT_LOADS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0, 1.15, 1.4)

_FOLDER = pathlib.Path("out/policies/study")

Found = Mapping[tuple[float, str], list[Run]]
"""Runs of all seeds, by load and policy."""


def measure(settings: Iterable[Mapping[str, Any]]) -> list[Found]:
    """Returns what calls of jserve-simulate give; `load` takes the place of `qps`."""
    calls, places = [], []
    for one in settings:
        capacity = KINDS.get(one["workload"], TURNS_QPS)
        qps = {load: f"{load * capacity:.5g}" for load in one["load"]}
        places.append({float(rate): load for load, rate in qps.items()})
        base: dict[str, Any] = {"qps": [*qps.values()], "max_model_len": 40960}
        base |= {"seed": 41, "num_seeds": flags.FLAGS.seeds}
        base |= {"num_requests": flags.FLAGS.num_requests}
        calls.append(base | {name: one[name] for name in one if name != "load"})
    found: list[Found] = []
    for runs, loads in zip(simulate(_FOLDER, calls), places, strict=True):
        by_place: dict[tuple[float, str], list[Run]] = {}
        for run in runs:
            by_place.setdefault((loads[run["qps"]], run["policy"]), []).append(run)
        found.append(by_place)
    return found


def late(runs: Sequence[Run], *keys: str) -> float:
    """Returns violations in %, by default of all requests."""
    return 100 * (1 - mean(runs, *keys, "attainment"))


def more(ours: Sequence[Run], other: Sequence[Run]) -> str:
    """Returns by how many points we violate more, paired by seed."""
    points = [late([one]) - late([two]) for one, two in zip(ours, other, strict=True)]
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*interval(points))


def columns(
    row: str, values: Mapping[str, float], digits: int = 1
) -> dict[tuple[str, str], str]:
    """Returns the cells of a row, by policy; the least is bold."""
    texts = {name: f"{value:.{digits}f}" for name, value in values.items()}
    least = f"{min(values.values()):.{digits}f}"
    return {
        (row, f"`{name.rsplit('.', 1)[-1]}`"): f"**{text}**" if text == least else text
        for name, text in texts.items()
    }


def violations(kinds: Sequence[str], condition: str) -> tuple[str, list[Found]]:
    """Returns the table of a condition, and its runs by kind."""
    found = measure(
        {"workload": kind, "load": LOADS, **CONDITIONS[condition]} for kind in kinds
    )
    cells: dict[tuple[str, str], str] = {}
    for (kind, runs), load in itertools.product(zip(kinds, found, strict=True), LOADS):
        row = f"{kind} {load:g}"
        of_load = {name: some for (at, name), some in runs.items() if at == load}
        cells |= columns(row, {name: late(some) for name, some in of_load.items()})
        best = min((of_load[one] for one in TUNED), key=late)
        for name, other in (("sliding", of_load["sliding"]), ("tuned", best)):
            cells[row, f"`ontime` - {name}"] = more(of_load["ontime"], other)
    return grid("", cells), found


def requests(kinds: Sequence[str], found: Sequence[Found]) -> str:
    """Returns violations by class and TTFT, in real conditions at 1.3x."""
    cells: dict[tuple[str, str], str] = {}
    for kind, runs in zip(kinds, found, strict=True):
        some = {name: runs[LOADS[1], name] for name in MORE}
        for one in some["ontime"][0]["by_class"]:
            shares = {name: late(few, "by_class", one) for name, few in some.items()}
            cells |= columns(f"{kind}: {one}, %", shares)
        for at in ("mean", "p99"):
            times_s = {name: mean(few, "ttft_s", at) for name, few in some.items()}
            cells |= columns(f"{kind}: TTFT {at}, s", times_s, digits=2)
    return grid("", cells)


def forecasts(kinds: Sequence[str], found: Mapping[str, Sequence[Found]]) -> str:
    """Returns errors of TTFT as forecast on arrival at 1.3x, and their calibration."""
    cells = {}
    for condition, place in itertools.product(("real", "exact"), range(len(kinds))):
        runs = found[condition][place][LOADS[1], "ontime"]
        for one, (name, key) in itertools.product(
            runs[0]["by_class"],
            (
                ("median error", "median_error"),
                ("below P50", "share_under_p50"),
                ("below P90", "share_under_p90"),
            ),
        ):
            share = mean(runs, "by_class", one, "ttft_forecast", key)
            row = f"{kinds[place]}: {one}"
            cells[row, f"{name}, {condition}"] = f"{100 * share:.0f}"
    return grid("", cells)


def of_each(settings: Mapping[str, Mapping[str, Any]], load: float) -> str:
    """Returns violations of each policy, with a row for each setting."""
    cells: dict[tuple[str, str], str] = {}
    calls = [{"load": [load], **one} for one in settings.values()]
    for row, found in zip(settings, measure(calls), strict=True):
        cells |= columns(row, {name: late(runs) for (_, name), runs in found.items()})
    return grid("", cells)


def goodput(runs: Sequence[Sequence[Run]], most: float) -> float:
    """Returns up to which load the share of violations stays at most `most`.

    Of the shares, pooled over seeds, the isotonic fit is taken, from none without load,
    and linear between two loads.

    Args:
      runs: Runs of all seeds at each of `GOODPUT_LOADS`.
    """
    fitted = isotonic_regression([0.0, *(late(one) / 100 for one in runs)]).x
    return float(np.interp(most, fitted, [0.0, *GOODPUT_LOADS]))


def goodputs(kinds: Sequence[str]) -> str:
    """Returns the goodput at 1 and at 5 % violations, as a share of the capacity."""
    base: dict[str, Any] = {"policies": MORE[:3], "load": GOODPUT_LOADS}
    base |= {"bucket_strategies": "none", "num_requests": 3 * flags.FLAGS.num_requests}
    cells = {}
    found = measure({"workload": kind, **base} for kind in kinds)
    for (kind, runs), most, policy in itertools.product(
        zip(kinds, found, strict=True), (0.01, 0.05), MORE[:3]
    ):
        share = goodput([runs[load, policy] for load in GOODPUT_LOADS], most)
        cells[kind, f"`{policy}`, {most:.0%}"] = f"{share:.2f}"
    return grid("", cells)


def admission(kinds: Sequence[str]) -> str:
    """Returns attained requests in %, without and with refusing."""
    places = [*itertools.product(kinds, ("real", "exact"))]
    base = [
        {"workload": kind, **CONDITIONS[one], "load": ADMISSION_LOADS}
        for kind, one in places
    ]
    pair = ("ontime", "sliding")
    free = measure(one | {"policies": pair} for one in base)
    refusing = measure(
        one | {"policies": pair[:1], "admission": "refuse"} for one in base
    )
    cells = {}
    for (place, runs, kept), load in itertools.product(
        zip(places, free, refusing, strict=True), ADMISSION_LOADS
    ):
        row, few = f"{', '.join(place)} {load:g}", kept[load, pair[0]]
        attained = mean(few, "attainment")
        refused = mean(few, "num_rejected") / mean(few, "num_requests")
        of_admitted = attained / (1 - refused) if refused < 1 else math.nan
        for name, share in (
            *((f"`{one}`", mean(runs[load, one], "attainment")) for one in pair),
            (f"`{pair[0]}`, refusing", attained),
            *(("refused", refused), ("attained of those admitted", of_admitted)),
        ):
            cells[row, name] = f"{100 * share:.1f}"
    return grid("", cells)


def main(argv: Sequence[str]) -> None:
    """Prints the tables, the most telling ones first."""
    del argv
    kinds = flags.FLAGS.kinds
    found = {}
    for condition in CONDITIONS:
        table, found[condition] = violations(kinds, condition)
        print_tables({condition: table})
    real = CONDITIONS["real"]
    print_tables(
        {
            "requests": requests(kinds, found["real"]),
            "forecast": forecasts(kinds, found),
            "goodput": goodputs(kinds),
            "admission": admission(kinds),
        }
    )
    overload = {kind: {**real, "workload": kind, "policies": MORE} for kind in kinds}
    print_tables({"overload": of_each(overload, 3.0)})
    base = {**real, "workload": WITH_TTLT, "policies": (*MORE, "annealing")}
    ends = {one: {**base, "length_estimator": one} for one in LENGTHS}
    print_tables({"lengths": of_each(ends, LOADS[1])})
    turns = {
        f"prefix cache: {on}": {
            **real,
            **{"workload": TURNS, "policies": MORE, "enable_prefix_caching": on},
        }
        for on in (True, False)
    }
    print_tables({"turns": of_each(turns, LOADS[1])})


if __name__ == "__main__":
    flags.DEFINE_integer("num_requests", 200, "Requests of a run.")
    flags.DEFINE_integer("seeds", 3, "Number of seeds, from 41 on.")
    flags.DEFINE_list("kinds", [*KINDS], "Kinds of load.")
    run_program(sys.modules[__name__])
