"""The results as Markdown tables, the paper's numbers beside them.

The one idea: a table is a pure function of one stage's entries, so what a page says
and what results.json holds cannot differ.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import paper
from settings import Settings

from jserve_tools.marked_pages import markdown

Entries = Sequence[Mapping[str, Any]]


def _names(entries: Entries, key: str) -> list[str]:
    """Returns the values of a key, each once, as they come."""
    return list(dict.fromkeys(str(one[key]) for one in entries))


def _in_shape(entries: Entries, shape: str) -> Entries:
    return [one for one in entries if one["shape"] == shape]


def goodput_table(entries: Entries, shape: str) -> str:
    """Returns goodput in requests per second: mean and 95 % interval over seeds."""
    entries = _in_shape(entries, shape)
    by_case = {(one["row"], one["workload"]): one for one in entries}
    workloads = _names(entries, "workload")
    rows = []
    for row in _names(entries, "row"):
        known = [by_case.get((row, workload)) for workload in workloads]
        rows.append([row, *("-" if one is None else _goodput(one) for one in known)])
    for model in (paper.QWEN, paper.LLAMA):
        for policy in paper.POLICIES:
            published = [
                f"{paper.goodput_qps(one, policy, model):.2f}" for one in workloads
            ]
            rows.append([f"*paper, {model}: {policy}*", *published])
    return markdown(["requests/s", *workloads], rows)


def _goodput(entry: Mapping[str, Any]) -> str:
    text = f"{entry['qps']:.2f}"
    if entry["ci95_qps"] is not None:
        text += f" ({entry['ci95_qps'][0]:.2f} to {entry['ci95_qps'][1]:.2f})"
    return text


def seeds_table(entries: Entries) -> str:
    """Returns each seed's goodput, requests per second."""
    seeds = [str(one["seed"]) for one in entries[0]["seeds"]]
    rows = [
        [
            f"{one['shape']}, {one['workload']}, {one['row']}",
            *(f"{seed['qps']:.2f}" for seed in one["seeds"]),
        ]
        for one in entries
    ]
    return markdown(["goodput, requests/s", *(f"seed {one}" for one in seeds)], rows)


def ratio_table(entries: Entries, shape: str) -> str:
    """Returns ratios of goodput with their range over seeds, and the paper's two."""
    entries = _in_shape(entries, shape)
    by_case = {(one["row"], one["base"], one["workload"]): one for one in entries}
    workloads = _names(entries, "workload")
    rows = []
    for row, base in dict.fromkeys((one["row"], one["base"]) for one in entries):
        cells = [f"{row} / {base}"]
        for workload in workloads:
            one = by_case.get((row, base, workload))
            cells.append("-" if one is None else _ratio(one))
        rows.append(cells)
    return markdown(["ratio of goodputs", *workloads], rows)


def _ratio(entry: Mapping[str, Any]) -> str:
    text = f"{entry['ratio']:.2f} ({entry['lowest']:.2f} to {entry['highest']:.2f})"
    if "paper" in entry:
        text += f"; {' / '.join(f'{one:.2f}' for one in entry['paper'].values())}"
    return text


def ablation_table(entries: Entries, shape: str) -> str:
    """Returns goodput and violations as the parts are added, beside the paper's."""
    entries = _in_shape(entries, shape)
    rows: list[list[str]] = []
    for index, one in enumerate(entries):
        gain = paper_gain = "-"
        if index:
            before = entries[index - 1]
            gain = _percent_more(one, before, "goodput_qps")
            if "paper_goodput_qps" in one:
                paper_gain = _percent_more(one, before, "paper_goodput_qps")
        rows.append(
            [
                one["row"],
                f"{one['goodput_qps']:.2f}",
                gain,
                f"{one['paper_goodput_qps']:.2f}"
                if "paper_goodput_qps" in one
                else "-",
                paper_gain,
                _percent(one),
                f"{one['paper_percent']:g}" if "paper_percent" in one else "-",
            ]
        )
    load = f"{entries[0]['qps']:.2f}/s"
    header = ["", "goodput", "gain", "paper", "gain"]
    return markdown([*header, f"violations % at {load}", "paper at 3/s"], rows)


def _percent_more(one: Mapping[str, Any], before: Mapping[str, Any], name: str) -> str:
    if before[name] <= 0:
        return "-"
    return f"{100 * (one[name] / before[name] - 1):+.1f} %"


def _percent(entry: Mapping[str, Any]) -> str:
    low, high = entry["percent_ci95"]
    return f"{entry['percent']:.1f} ({low:.1f} to {high:.1f})"


def overload_table(entries: Entries, shape: str) -> str:
    """Returns violations in percent with their interval; the paper's after a slash."""
    entries = _in_shape(entries, shape)
    policies = _names(entries, "row")
    rows = []
    for label, group in _by_load(entries):
        cells = [f"{_percent(one)} / {one['paper_percent']:g}" for one in group]
        rows.append([label, *cells])
    return markdown(["violations %, ours / paper's", *policies], rows)


def ttft_table(entries: Entries, shape: str) -> str:
    """Returns TTFT P50, P90, P99, and P99 of those served late, in seconds."""
    entries = _in_shape(entries, shape)
    policies = _names(entries, "row")
    rows = []
    for label, group in _by_load(entries):
        rows.append([label, *(_ttft(one) for one in group)])
    return markdown(["TTFT P50, P90, P99; P99 of late, s", *policies], rows)


def _ttft(entry: Mapping[str, Any]) -> str:
    if entry["ttft_s"] is None:
        return "-"
    times = ", ".join(f"{entry['ttft_s'][key]:.1f}" for key in ("p50", "p90", "p99"))
    late = entry["late_ttft_s"]
    return f"{times}; {'-' if late is None else format(late['p99'], '.1f')}"


def _by_load(entries: Entries) -> list[tuple[str, Entries]]:
    """Returns a label and the policies' entries for each workload and load."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for one in entries:
        label = f"{one['workload']} {one['qps']:.2f}/s ({one['load']:.2f} x)"
        groups.setdefault(label, []).append(one)
    return list(groups.items())


def transient_table(entries: Entries) -> str:
    """Returns violations under the alternating load, beside the paper's."""
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
    """Returns what was tuned, and to what."""
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
    """Returns every table that the report's stages allow, by its name."""
    tables = {"settings": settings_table(settings)} if settings.choices else {}
    for stage, name, make in (
        ("goodput", "goodput", goodput_table),
        ("ratios", "ratios", ratio_table),
        ("ablation", "ablation", ablation_table),
        ("overload", "overload", overload_table),
        ("overload", "ttft", ttft_table),
    ):
        entries = report.get(stage, [])
        for shape in _names(entries, "shape"):
            tables[f"{name}-{shape}"] = make(entries, shape)
    if report.get("goodput"):
        tables["seeds"] = seeds_table(report["goodput"])
    if report.get("transient"):
        tables["transient"] = transient_table(report["transient"])
    return tables
