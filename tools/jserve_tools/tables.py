"""Tables for people, from the same entries that go to the JSON report."""

from collections.abc import Mapping, Sequence
from typing import Any

from jserve_sched.workload import Yardstick
from jserve_tools.workload import Workload


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
    return f"{seconds * 1e3:.1f}ms" if seconds < 1 else f"{seconds:.2f}s"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.1f}%"


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def run_name(run: Mapping[str, Any]) -> str:
    """Returns what tells a run from others, in a word or two."""
    name = str(run.get("policy", "server"))
    if run.get("bucket_strategy", "pow2") != "pow2":
        name += f"/{run['bucket_strategy']}"
    if "load" in run:
        return f"{name} @{run['load']:g}x"
    if "qps" in run:
        return f"{name} @{run['qps']:.3g}/s"
    if run.get("is_one_shot"):
        return f"{name}, all at once"
    return f"{name}, {run['num_clients']} clients"


def _latencies(run: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [
        duration(run.get(name, {}).get(percentile))
        for name in names
        for percentile in ("p50", "p99")
    ]


def runs_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns one row for each run: promises kept, latencies, throughput."""
    classes = sorted({name for run in runs for name in run["by_class"]})
    if classes == ["best_effort"]:
        classes = []
    has_goodput = any("goodput_qps" in run for run in runs)
    header = ["run", "req/s"]
    header += ["goodput"] if has_goodput else []
    header += ["met", *(f"met {name}" for name in classes), "failed"]
    header += ["TTFT p50", "p99", "TBT p50", "p99", "E2E p50", "p99"]
    header += ["met req/s", "tok/s"]
    rows = [header]
    for run in runs:
        by_class = run["by_class"]
        row = [run_name(run), _number(run.get("qps"))]
        row += [_number(run.get("goodput_qps"), ".3f")] if has_goodput else []
        row.append(_share(run["attainment"]))
        row += [_share(by_class.get(name, {}).get("attainment")) for name in classes]
        row.append(str(run["num_requests"] - run["num_finished"]))
        row += _latencies(run, ("ttft_s", "tbt_s", "e2e_s"))
        row.append(_number(run.get("met_per_s")))
        row.append(_number(run.get("output_tokens_per_s"), ".0f"))
        rows.append(row)
    return render(rows)


def shapes_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns one row for each run: padding, steps, programs, and starting up.

    A start ends when nothing is left to compile; "again" is a start with a compile
    cache that is full.
    """
    header = ["shapes", "req/s", "pad", "pad time", "steps/s", "programs"]
    starts = [
        (name, title)
        for name, title in (("start_up", "start"), ("start_up_warm", "start again"))
        if any(name in run for run in runs)
    ]
    for _, title in starts:
        header += [title, "compile"]
    header += ["executables"] if starts else []
    compiles = "num_compiles_after_warmup"
    has_compiles = any(compiles in run for run in runs)
    header += ["compiles later"] if has_compiles else []
    rows = [header]
    for run in runs:
        row = [
            run_name(run),
            _number(run.get("qps")),
            _share(run.get("pad_share_tokens")),
            _share(run.get("pad_share_time")),
            _number(run.get("steps_per_s"), ".1f"),
            _number(run.get("num_programs"), "d"),
        ]
        for name, _ in starts:
            start = run.get(name, {})
            row += [duration(start.get("warm_s")), duration(start.get("compile_s"))]
        if starts:
            num_bytes = run.get("start_up", {}).get("executable_bytes")
            row.append("-" if num_bytes is None else f"{num_bytes / 2**20:.1f} MiB")
        row += [_number(run.get(compiles), "d")] if has_compiles else []
        rows.append(row)
    return render(rows)


def lengths_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns one row for each class of each run whose answers were predicted."""
    rows = [["lengths", "class", "answers", "tokens", "predicted", "off by", "share"]]
    for run in runs:
        for name, error in run.get("length_error", {}).items():
            off_tokens, tokens = error["mean_abs_error_tokens"], error["mean_tokens"]
            rows.append(
                [
                    run_name(run),
                    name,
                    str(error["num_requests"]),
                    _number(tokens, ".1f"),
                    _number(error["mean_predicted_tokens"], ".1f"),
                    _number(off_tokens, ".1f"),
                    _share(off_tokens / tokens),
                ]
            )
    return render(rows)


def run_tables(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns all that people are shown of runs."""
    tables = [runs_table(runs), shapes_table(runs)]
    if any("length_error" in run for run in runs):
        tables.append(lengths_table(runs))
    return "\n\n".join(tables)


def slo_table(workload: Workload, yardstick: Yardstick | None) -> str:
    """Returns one row for each class: its share and its promises in seconds."""
    rows = [["class", "share", "requests", "TTFT bound", "TBT bound", "TTLT bound"]]
    resolved = [workload.slo(row, yardstick) for row in range(len(workload.rows))]
    for one in workload.classes:
        slos = [slo for name, slo in resolved if name == one.name]
        rows.append(
            [
                one.name,
                f"{one.share:g}",
                str(len(slos)),
                *(
                    _range([getattr(slo, field) for slo in slos])
                    for field in ("ttft_s", "tbt_s", "ttlt_s")
                ),
            ]
        )
    return render(rows)


def _range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "none"
    low, high = duration(min(known)), duration(max(known))
    return low if low == high else f"{low} to {high}"


def host_table(breakdown: Sequence[Mapping[str, Any]]) -> str:
    """Returns the medians of a step's parts, and one line on host and device."""
    last = breakdown[-1]
    has_overlap = bool(last["overlap"])
    parts = list(breakdown[0]["median_ms"])
    sums = ["host"] if has_overlap else ["host", "device", "host/device"]
    rows = [["median ms per step", "steps", *parts, *sums]]
    for entry in breakdown:
        row = [entry["steps"], str(entry["num_steps"])]
        row += [f"{entry['median_ms'][part]:.3f}" for part in parts]
        row.append(f"{entry['host_ms']:.3f}")
        if not has_overlap:
            row += [f"{entry['device_ms']:.3f}", f"{entry['host_to_device']:.2f}"]
        rows.append(row)
    if has_overlap:
        line = (
            "overlap on: the device works while the host does, so its time cannot "
            "be told from outside; waiting is a lower bound"
        )
    else:
        verdict = "less" if last["host_ms"] < last["device_ms"] else "no less"
        line = (
            f"overlap off, {last['steps']}: host {last['host_ms']:.3f} ms, device "
            f"(launch and wait) {last['device_ms']:.3f} ms: a step spends {verdict} "
            "time in Python than in XLA"
        )
    return f"{render(rows)}\n{line}"
