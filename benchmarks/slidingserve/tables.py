"""The results as Markdown tables, with the paper's numbers.

A table is a pure function of one stage's entries, so pages and results.json agree.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.marked_pages import markdown
from benchmarks.slidingserve import paper
from benchmarks.slidingserve.tuning import Settings

Entry = Mapping[str, Any]


def _pivot(
    corner: str,
    entries: Sequence[Entry],
    row: Callable[[Entry], str],
    column: Callable[[Entry], str],
    cell: Callable[[Entry], str],
    extra_rows: Sequence[Sequence[str]] = (),
) -> str:
    """Returns a table with one cell for each entry, in the order of entries."""
    cells = {(row(one), column(one)): cell(one) for one in entries}
    rows = dict.fromkeys(name for name, _ in cells)
    columns = dict.fromkeys(name for _, name in cells)
    body = [
        [name, *(cells.get((name, column), "-") for column in columns)] for name in rows
    ]
    return markdown([corner, *columns], [*body, *extra_rows])


_name: Callable[[Entry], str] = operator.itemgetter("row")
_workload: Callable[[Entry], str] = operator.itemgetter("workload")


def _load(one: Entry) -> str:
    return f"{one['workload']} {one['qps']:.2f}/s ({one['load']:.2f} x)"


def _goodput(one: Entry) -> str:
    text = f"{one['qps']:.2f}"
    if one["ci95_qps"] is not None:
        text += f" ({one['ci95_qps'][0]:.2f} to {one['ci95_qps'][1]:.2f})"
    return text


def _ratio(one: Entry) -> str:
    text = f"{one['ratio']:.2f} ({one['lowest']:.2f} to {one['highest']:.2f})"
    if "paper" in one:
        text += f"; {' / '.join(f'{value:.2f}' for value in one['paper'].values())}"
    return text


def _percent(one: Entry) -> str:
    low, high = one["percent_ci95"]
    return f"{one['percent']:.1f} ({low:.1f} to {high:.1f})"


def _ttft(one: Entry) -> str:
    if one["ttft_s"] is None:
        return "-"
    times = ", ".join(f"{one['ttft_s'][key]:.1f}" for key in ("p50", "p90", "p99"))
    late = one["late_ttft_s"]
    return f"{times}; {'-' if late is None else format(late['p99'], '.1f')}"


def goodput_table(entries: Sequence[Entry]) -> str:
    """Returns goodput in requests per second: mean and 95 % interval over seeds."""
    workloads = dict.fromkeys(map(_workload, entries))
    published = [
        [
            f"*paper, {model}: {policy}*",
            *(f"{paper.goodput_qps(one, policy, model):.2f}" for one in workloads),
        ]
        for model in (paper.QWEN, paper.LLAMA)
        for policy in paper.POLICIES
    ]
    return _pivot("requests/s", entries, _name, _workload, _goodput, published)


def ratio_table(entries: Sequence[Entry]) -> str:
    """Returns ratios of goodput with their range over seeds, and the paper's two."""
    return _pivot(
        "ratio of goodputs",
        entries,
        lambda one: f"{one['row']} / {one['base']}",
        _workload,
        _ratio,
    )


def overload_table(entries: Sequence[Entry]) -> str:
    """Returns violations in percent with their interval, and the paper's."""
    return _pivot(
        "violations %, ours / paper's",
        entries,
        _load,
        _name,
        lambda one: f"{_percent(one)} / {one['paper_percent']:g}",
    )


def ttft_table(entries: Sequence[Entry]) -> str:
    """Returns TTFT P50, P90, P99, and P99 of late first tokens, in seconds."""
    corner = "TTFT P50, P90, P99; P99 of late, s"
    return _pivot(corner, entries, _load, _name, _ttft)


def ablation_table(entries: Sequence[Entry]) -> str:
    """Returns goodput and violations as parts are added, with the paper's."""

    def gain(one: Entry, before: Entry | None, name: str) -> str:
        if before is None or name not in one or before[name] <= 0:
            return "-"
        return f"{100 * (one[name] / before[name] - 1):+.1f} %"

    rows = [
        [
            one["row"],
            f"{one['goodput_qps']:.2f}",
            gain(one, before, "goodput_qps"),
            format(one["paper_goodput_qps"], ".2f") if "paper_percent" in one else "-",
            gain(one, before, "paper_goodput_qps"),
            _percent(one),
            format(one["paper_percent"], "g") if "paper_percent" in one else "-",
        ]
        for one, before in zip(entries, [None, *entries[:-1]], strict=True)
    ]
    load = f"violations % at {entries[0]['qps']:.2f}/s"
    return markdown(
        ["", "goodput", "gain", "paper", "gain", load, "paper at 3/s"], rows
    )


def seeds_table(entries: Sequence[Entry]) -> str:
    """Returns each seed's goodput, requests per second."""
    seeds = [f"seed {one['seed']}" for one in entries[0]["seeds"]]
    rows = [
        [
            f"{one['shape']}, {one['workload']}, {one['row']}",
            *(f"{seed['qps']:.2f}" for seed in one["seeds"]),
        ]
        for one in entries
    ]
    return markdown(["goodput, requests/s", *seeds], rows)


def transient_table(entries: Sequence[Entry]) -> str:
    """Returns violations under the alternating load, with the paper's."""
    rows = [
        [
            f"{one['shape']}, {one['row']}",
            " and ".join(f"{level:.2f}" for level in one["levels_qps"]),
            _percent(one),
            f"{one['paper_percent']:g}",
            _ttft(one),
        ]
        for one in entries
    ]
    header = ["", "levels, requests/s", "violations %", "paper"]
    return markdown([*header, "TTFT P50, P90, P99; P99 of late, s"], rows)


def settings_table(settings: Settings) -> str:
    """Returns the tuned settings."""
    rows = [
        [
            f"{one.shape}, {one.workload}, {one.row}",
            str(one.limit_tokens),
            ", ".join(f"{name}={value}" for name, value in one.options.items()) or "-",
            f"{one.qps:.2f}",
            str(one.num_tried),
        ]
        for one in settings.choices
    ]
    header = ["", "step limit, tokens", "options", "goodput of seed", "tried"]
    return markdown(header, rows)


def all_tables(report: Mapping[str, Any], settings: Settings) -> dict[str, str]:
    """Returns the tables of all stages in the report, by name."""
    tables = {"settings": settings_table(settings)} if settings.choices else {}
    for stage, name, make in (
        ("goodput", "goodput", goodput_table),
        ("ratios", "ratios", ratio_table),
        ("ablation", "ablation", ablation_table),
        ("overload", "overload", overload_table),
        ("overload", "ttft", ttft_table),
    ):
        by_shape: dict[str, list[Entry]] = {}
        for one in report.get(stage, []):
            by_shape.setdefault(one["shape"], []).append(one)
        for shape, entries in by_shape.items():
            tables[f"{name}-{shape}"] = make(entries)
    if report.get("goodput"):
        tables["seeds"] = seeds_table(report["goodput"])
    if report.get("transient"):
        tables["transient"] = transient_table(report["transient"])
    return tables
