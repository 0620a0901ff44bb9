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
    if "num_clients" in run:
        return f"{run['num_clients']} clients"
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


def _text(value: Any, form: str) -> str:
    if value is None:
        return "-"
    return duration(value) if form == "s" else format(value, form)


def _table(rows: Sequence[Row], columns: Sequence[tuple[str, str, str]]) -> str:
    """Returns a table of rows; columns without any value are left out.

    Args:
      columns: Title, path of keys joined by slashes, and format of each column; the
        format "s" is a time in seconds.
    """
    texts = []
    for title, path, form in columns:
        values = [look_up(row, path.split("/")) for row in rows]
        if any(value is not None for value in values):
            texts.append([title, *(_text(value, form) for value in values)])
    return render(list(zip(*texts, strict=True)))


def fits_table(fits: Sequence[Row]) -> str:
    """Returns one row for each fit of buckets to a simulation."""
    rows = [
        {**one, "fit": run_name({"bucket_strategy": "fitted", "is_one_shot": 1} | fit)}
        for fit in map(dict, fits)
        for one in fit["iterations"]
    ]
    columns = [
        ("fitted for", "fit", ""),
        ("programs", "num_programs", "d"),
        ("expected step", "expected_s", "s"),
        ("padding of time", "pad_share_time", ".1%"),
    ]
    return _table(rows, columns)


def instances_table(runs: Sequence[Row]) -> str:
    """Returns one row for each engine of runs with several engines."""
    rows = [
        {**one, "engine": f"{run_name(run)} #{place}"}
        for run in runs
        for place, one in enumerate(run["instances"])
    ]
    columns = [
        ("engine", "engine", ""),
        ("requests", "num_requests", "d"),
        ("attained", "attainment", ".1%"),
        ("output tokens", "output_tokens", "d"),
        ("busy", "busy_share", ".1%"),
    ]
    return _table(rows, columns)


def host_table(breakdown: Sequence[Row]) -> str:
    """Returns the medians of a step's parts, and a sentence on host and device."""
    columns = [
        ("median ms per step", "steps", ""),
        ("steps", "num_steps", "d"),
        *((part, f"median_ms/{part}", ".3f") for part in breakdown[0]["median_ms"]),
        ("host", "host_ms", ".3f"),
        ("device", "device_ms", ".3f"),
        ("host/device", "host_to_device", ".2f"),
    ]
    table = _table(breakdown, columns)
    last = breakdown[-1]
    if last["overlap"]:
        return (
            f"{table}\noverlap on: the device works while the host does, so its time "
            "cannot be measured; waiting is a lower bound"
        )
    verdict = "less" if last["host_ms"] < last["device_ms"] else "not less"
    return (
        f"{table}\noverlap off, {last['steps']}: host {last['host_ms']:.3f} ms, device "
        f"(launch and wait) {last['device_ms']:.3f} ms: a step spends {verdict} time "
        "in Python than in XLA"
    )
