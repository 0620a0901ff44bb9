"""Text tables of the entries of a JSON report."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def render(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows, of which the first is the header, as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]])


def duration(seconds: float | None) -> str:
    """Returns a time in ms or s, with its unit; a dash for None."""
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.1f}ms" if abs(seconds) < 1 else f"{seconds:.2f}s"


def load_name(run: Row) -> str:
    """Returns the load of a run, as the user gave it."""
    if "goodput_qps" in run:
        return "goodput"
    if "load" in run:
        return f"{run['load']:g}x"
    if "qps" in run:
        return f"{run['qps']:.3g}/s"
    return "all at once" if run.get("is_one_shot") else "one load"


def run_name(run: Row) -> str:
    """Returns a run's name: its policy, bucket strategy and load."""
    policy, strategy = run.get("policy", "server"), run.get("bucket_strategy", "pow2")
    return f"{policy} / {strategy} @ {load_name(run)}"


def look_up(entry: Any, path: Sequence[str]) -> Any:
    """Returns the value of nested mappings under a path of keys; None without one."""
    for key in path:
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    return entry


def fits_table(fits: Sequence[Row]) -> str:
    """Returns one row for each fit of buckets to a simulation."""
    rows = [["fitted for", "programs", "expected step", "padding of time"]]
    for fit in fits:
        name = run_name({"bucket_strategy": "fitted", "is_one_shot": 1} | dict(fit))
        for one in fit["iterations"]:
            times = [duration(one["expected_s"]), f"{one['pad_share_time']:.1%}"]
            rows.append([name, str(one["num_programs"]), *times])
    return render(rows)


def instances_table(runs: Sequence[Row]) -> str:
    """Returns one row for each engine of runs with several engines."""
    rows = [["engine", "requests", "attained", "output tokens", "busy"]]
    for run in runs:
        for place, one in enumerate(run["instances"]):
            share = f"{one['attainment']:.1%}" if "attainment" in one else "-"
            counts = [str(one["num_requests"]), share, str(one["output_tokens"])]
            name = f"{run_name(run)} #{place}"
            rows.append([name, *counts, f"{one['busy_share']:.1%}"])
    return render(rows)
