"""Tables of what only simulations find: goodput, fits, and how fast they ran."""

from collections.abc import Mapping, Sequence
from typing import Any

from jserve_tools.tables import duration, render, run_name


def _rate(entry: Mapping[str, Any]) -> str:
    return f"{entry['qps']:.3g}" if "qps" in entry else "-"


def goodput_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns one row for each goodput that was searched."""
    rows = [["goodput", "buckets", "requests/s", "95 % interval", "violations"]]
    for run in runs:
        interval = run.get("goodput_ci95_qps")
        rows.append(
            [
                run["policy"],
                run["bucket_strategy"],
                f"{run['goodput_qps']:.3f}",
                "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
                f"{run['goodput_violation_share'] * 100:.2f}%",
            ]
        )
    return render(rows)


def fits_table(fits: Sequence[Mapping[str, Any]]) -> str:
    """Returns one row for each turn of each fit of buckets to a simulation."""
    rows = [["fitted for", "turn", "programs", "expected step", "pad time", "change"]]
    for fit in fits:
        for turn, one in enumerate(fit["iterations"], 1):
            rows.append(
                [
                    run_name({"is_one_shot": True, **fit}),
                    str(turn),
                    str(one["num_programs"]),
                    duration(one["expected_s"]),
                    f"{one['pad_share_time'] * 100:.1f}%",
                    f"{one['change'] * 100:+.2f}%" if "change" in one else "-",
                ]
            )
    return render(rows)


def speed_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns one row for each run: virtual steps and requests per real time."""
    rows = [["simulation speed", "seed", "qps", "steps/s", "requests/min"]]
    for run in runs:
        speed = run["simulation"]
        rows.append(
            [
                f"{run['policy']}/{run['bucket_strategy']}",
                str(run["seed"]),
                _rate(run),
                f"{speed['steps_per_s']:.0f}",
                f"{speed['requests_per_min']:.0f}",
            ]
        )
    return render(rows)


def instances_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns one row for each engine of each run with several."""
    rows = [["engine", "requests", "met", "tok", "busy"]]
    for run in runs:
        for place, one in enumerate(run["instances"]):
            met = one.get("attainment")
            rows.append(
                [
                    f"{run_name(run)} #{place}",
                    str(one["num_requests"]),
                    "-" if met is None else f"{met * 100:.1f}%",
                    str(one["output_tokens"]),
                    f"{one['busy_share'] * 100:.1f}%",
                ]
            )
    return render(rows)
