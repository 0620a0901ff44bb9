"""Tables for people, from the same entries that go to the JSON report."""

from collections.abc import Mapping, Sequence
from typing import Any

from jserve_sched.workload import Yardstick
from jserve_tools.workload import Workload

Row = Mapping[str, Any]
Column = tuple[str, str, str]  # title, path of keys, form


def render(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows, the first of them a header, as aligned columns."""
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
    """Returns seconds with a unit that suits them; a dash for None."""
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.1f}ms" if abs(seconds) < 1 else f"{seconds:.2f}s"


def run_name(run: Row) -> str:
    """Returns what tells a run from others, in a word or two."""
    name = str(run.get("policy", "server"))
    if run.get("bucket_strategy", "pow2") != "pow2":
        name += f"/{run['bucket_strategy']}"
    if "load" in run:
        return f"{name} @{run['load']:g}x"
    if "qps" in run:
        return f"{name} @{run['qps']:.3g}/s"
    if "num_clients" in run:
        return f"{name}, {run['num_clients']} clients"
    return f"{name}, all at once" if run.get("is_one_shot") else name


def _text(row: Row, path: str, form: str) -> str | None:
    """Returns what a row has under a path, as text; None if nothing."""
    value: Any = row
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        return None
    return duration(value) if form == "s" else format(value, form)


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Returns rows by columns; a column that no row has a value for is left out.

    Args:
      rows: What to show.
      columns: Each one's title, the keys that lead to its values, joined by slashes,
        and their format; "s" is a time in seconds.
    """
    filled = [
        (title, [_text(row, path, form) for row in rows])
        for title, path, form in columns
    ]
    filled = [one for one in filled if any(text is not None for text in one[1])]
    lines = zip(*(texts for _, texts in filled), strict=True)
    return render(
        [
            [title for title, _ in filled],
            *(["-" if text is None else text for text in line] for line in lines),
        ]
    )


def _runs_table(runs: Sequence[Row]) -> str:
    """Returns one row for each run: goodput, attainment, latencies, throughput."""
    classes = sorted({name for run in runs for name in run["by_class"]})
    rows = []
    for run in runs:
        failed = run["num_requests"] - run["num_finished"]
        by_class = {f"class {name}": one for name, one in run["by_class"].items()}
        rows.append({**run, **by_class, "run": run_name(run), "failed": failed})
        if (ends := run.get("goodput_ci95_qps")) is not None:
            rows[-1]["interval"] = f"{ends[0]:.3f} to {ends[1]:.3f}"
    columns = [
        ("run", "run", ""),
        ("req/s", "qps", ".2f"),
        ("goodput", "goodput_qps", ".3f"),
        ("95 % interval", "interval", ""),
        ("violations", "goodput_violation_share", ".2%"),
        ("attained", "attainment", ".1%"),
    ]
    if classes != ["best_effort"]:
        columns += [
            (f"attained {name}", f"class {name}/attainment", ".1%") for name in classes
        ]
    columns.append(("failed", "failed", "d"))
    for name, key in (("TTFT", "ttft_s"), ("TBT", "tbt_s"), ("E2E", "e2e_s")):
        columns += [(f"{name} p50", f"{key}/p50", "s"), ("p99", f"{key}/p99", "s")]
    columns += [
        ("attained/s", "met_per_s", ".2f"),
        ("tok/s", "output_tokens_per_s", ".0f"),
    ]
    return _table(rows, columns)


def _buckets_table(runs: Sequence[Row]) -> str:
    """Returns one row for each run: padding, steps, programs, and starting up.

    A start ends when nothing is left to compile; "again" is a start with a compile
    cache that is full.
    """
    return _table(
        [{**run, "run": run_name(run)} for run in runs],
        [
            ("buckets", "run", ""),
            ("req/s", "qps", ".2f"),
            ("pad", "pad_share_tokens", ".1%"),
            ("pad time", "pad_share_time", ".1%"),
            ("steps/s", "steps_per_s", ".1f"),
            ("programs", "num_programs", "d"),
            ("start", "start_up/warm_s", "s"),
            ("compile", "start_up/compile_s", "s"),
            ("start again", "start_up_warm/warm_s", "s"),
            ("compile", "start_up_warm/compile_s", "s"),
            ("executables, bytes", "start_up/executable_bytes", ",d"),
            ("compiles later", "num_compiles_after_warmup", "d"),
            ("simulated steps/s", "simulation/steps_per_s", ".0f"),
            ("requests/min", "simulation/requests_per_min", ".0f"),
        ],
    )


def _lengths_table(runs: Sequence[Row]) -> str:
    """Returns one row for each class of each run whose answers were predicted."""
    rows = [
        {**error, "run": run_name(run), "class": name}
        | {"share": error["mean_abs_error_tokens"] / error["mean_tokens"]}
        for run in runs
        for name, error in run.get("length_error", {}).items()
    ]
    return _table(
        rows,
        [
            ("lengths", "run", ""),
            ("class", "class", ""),
            ("answers", "num_requests", "d"),
            ("tokens", "mean_tokens", ".1f"),
            ("predicted", "mean_predicted_tokens", ".1f"),
            ("off by", "mean_abs_error_tokens", ".1f"),
            ("share", "share", ".1%"),
        ],
    )


def run_tables(runs: Sequence[Row]) -> str:
    """Returns all that people are shown of runs."""
    tables = [_runs_table(runs), _buckets_table(runs)]
    if any("length_error" in run for run in runs):
        tables.append(_lengths_table(runs))
    return "\n\n".join(tables)


def fits_table(fits: Sequence[Row]) -> str:
    """Returns one row for each turn of each fit of buckets to a simulation."""
    rows = [
        {**one, "fit": run_name({"is_one_shot": True, **fit}), "turn": turn}
        for fit in fits
        for turn, one in enumerate(fit["iterations"], 1)
    ]
    return _table(
        rows,
        [
            ("fitted for", "fit", ""),
            ("turn", "turn", "d"),
            ("programs", "num_programs", "d"),
            ("expected step", "expected_s", "s"),
            ("pad time", "pad_share_time", ".1%"),
            ("change", "change", "+.2%"),
        ],
    )


def instances_table(runs: Sequence[Row]) -> str:
    """Returns one row for each engine of each run with several."""
    rows = [
        {**one, "engine": f"{run_name(run)} #{place}"}
        for run in runs
        for place, one in enumerate(run["instances"])
    ]
    return _table(
        rows,
        [
            ("engine", "engine", ""),
            ("requests", "num_requests", "d"),
            ("attained", "attainment", ".1%"),
            ("tok", "output_tokens", "d"),
            ("busy", "busy_share", ".1%"),
        ],
    )


def slo_table(workload: Workload, yardstick: Yardstick | None) -> str:
    """Returns one row for each class: its share and its SLO in seconds."""
    rows = [["class", "share", "requests", "TTFT bound", "TBT bound", "TTLT bound"]]
    resolved = [workload.slo(row, yardstick) for row in range(len(workload.rows))]
    for one in workload.classes:
        slos = [slo for name, slo in resolved if name == one.name]
        bounds = [
            _range([getattr(slo, field) for slo in slos])
            for field in ("ttft_s", "tbt_s", "ttlt_s")
        ]
        rows.append([one.name, f"{one.share:g}", str(len(slos)), *bounds])
    return render(rows)


def _range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "none"
    low, high = duration(min(known)), duration(max(known))
    return low if low == high else f"{low} to {high}"


def host_table(breakdown: Sequence[Row]) -> str:
    """Returns the medians of a step's parts, and one line on host and device."""
    parts = breakdown[0]["median_ms"]
    table = _table(
        breakdown,
        [
            ("median ms per step", "steps", ""),
            ("steps", "num_steps", "d"),
            *((part, f"median_ms/{part}", ".3f") for part in parts),
            ("host", "host_ms", ".3f"),
            ("device", "device_ms", ".3f"),
            ("host/device", "host_to_device", ".2f"),
        ],
    )
    last = breakdown[-1]
    if last["overlap"]:
        return (
            f"{table}\noverlap on: the device works while the host does, so its time "
            "cannot be told from outside; waiting is a lower bound"
        )
    verdict = "less" if last["host_ms"] < last["device_ms"] else "no less"
    return (
        f"{table}\noverlap off, {last['steps']}: host {last['host_ms']:.3f} ms, device "
        f"(launch and wait) {last['device_ms']:.3f} ms: a step spends {verdict} time "
        "in Python than in XLA"
    )
