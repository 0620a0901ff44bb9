"""Tables of what only simulations find: goodput, and how fast they ran."""

from collections.abc import Mapping, Sequence
from typing import Any

from jserve_tools.tables import render


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


def speed_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns one row for each run: virtual steps and requests per real time."""
    rows = [["simulation speed", "seed", "qps", "steps/s", "requests/min"]]
    for run in runs:
        speed = run["simulation"]
        rows.append(
            [
                f"{run['policy']}/{run['bucket_strategy']}",
                str(run["seed"]),
                f"{run['qps']:.3g}",
                f"{speed['steps_per_s']:.0f}",
                f"{speed['requests_per_min']:.0f}",
            ]
        )
    return render(rows)
