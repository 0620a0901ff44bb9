"""The studies' results as Markdown tables, the paper's two claims beside them.

The one idea: a row is a cell of a study and a column a policy, so that every cell that
was run can be read off, also those in which nothing is gained.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import claims
from studies import BASE, NOT_ASKED, SEARCHED

from jserve_tools.marked_pages import markdown

Entry = Mapping[str, Any]
Entries = Sequence[Entry]


def values_of(entries: Entries, key: str) -> list[Any]:
    """Returns the values of a key, each once, as they come."""
    return list(dict.fromkeys(one[key] for one in entries))


def limit_name(max_num_seqs: int) -> str:
    """Returns what tables call a b_max."""
    return str(max_num_seqs) if max_num_seqs else "the machine's 256"


def table_name(*parts: str) -> str:
    """Returns the name of a table, as pages mark it."""
    return "-".join(parts).replace("_", "-")


def _attainment(entry: Entry) -> str:
    mean = 100 * entry["attainment_mean_tpot"]
    strict = 100 * entry["attainment"]
    text = f"{strict:.1f}"
    return text if abs(mean - strict) < 0.05 else f"{text} / {mean:.1f}"


def _latency(entry: Entry) -> str:
    return f"{entry['mean_e2e_s']:.1f}"


def _goal(entry: Entry) -> str:
    return f"{1e3 * entry['goal_per_s']:.1f}"


_MEASURES: tuple[tuple[str, str, Callable[[Entry], str]], ...] = (
    ("attainment", "attainment, %", _attainment),
    ("latency", "mean latency, s", _latency),
    ("goal", "G, 1/1000 s", _goal),
)


def _grid(
    entries: Entries,
    title: str,
    row_of: Callable[[Entry], str],
    cell_of: Callable[[Entry], str],
) -> str:
    """Returns a table of cells by policies."""
    policies = values_of(entries, "policy")
    by_row: dict[str, dict[str, str]] = {}
    for one in entries:
        by_row.setdefault(row_of(one), {})[one["policy"]] = cell_of(one)
    rows = [
        [row, *(cells.get(policy, "-") for policy in policies)]
        for row, cells in by_row.items()
    ]
    return markdown([title, *policies], rows)


def one_shot_tables(entries: Entries) -> dict[str, str]:
    """Returns attainment, latency and G of each mix."""

    def row_of(one: Entry) -> str:
        return f"N = {one['num_requests']}, b_max = {one['max_num_seqs']}"

    return {
        table_name("one-shot", mix, name): _grid(
            [one for one in entries if one["mix"] == mix], title, row_of, cell_of
        )
        for mix in values_of(entries, "mix")
        for name, title, cell_of in _MEASURES
    }


def claims_table(entries: Entries) -> str:
    """Returns gains over `fcfs`, median and best cell, beside the paper's maxima."""
    rows = []
    for one in entries:
        ratio, change = one["attainment_ratio"], one["latency_change"]
        rows.append(
            [
                f"{one['mix']}, {one['policy']}",
                _ratio(ratio["median"]),
                f"{_ratio(ratio['best'])}{_where(ratio['best_cell'])}",
                _change(change["median"]),
                f"{_change(change['best'])}{_where(change['best_cell'])}",
            ]
        )
    best = [
        f"up to {claims.ATTAINMENT_RATIO:g}",
        "-",
        _change(claims.LATENCY_CHANGE),
    ]
    rows.append(["*paper, against vLLM and LMDeploy*", "-", *best])
    header = ["against fcfs", "attainment, ratio: median", "best cell"]
    return markdown([*header, "mean latency: median", "best cell"], rows)


def shares_table(entries: Entries) -> str:
    """Returns how much of the search's gain each other policy has."""
    rows = [
        [
            f"{one['mix']}, {one['policy']}",
            _share(one["share_of_attainment"]),
            str(one["share_of_attainment_cells"]),
            _share(one["share_of_latency"]),
            str(one["share_of_latency_cells"]),
        ]
        for one in entries
        if one["policy"] != SEARCHED
    ]
    header = [f"share of {SEARCHED}'s gain over {BASE}, median", "of attainment"]
    return markdown([*header, "cells", "of mean latency", "cells"], rows)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _change(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f} %"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _where(cell: Entry | None) -> str:
    if cell is None:
        return ""
    return f" (N {cell['num_requests']}, b {cell['max_num_seqs']})"


def search_table(entries: Entries) -> str:
    """Returns the search's gain over `fcfs` in every cell, with 95 % intervals."""
    rows = [
        [
            f"{one['mix']}, N = {one['num_requests']}, b_max = {one['max_num_seqs']}",
            _interval(one, "attainment_ratio", _ratio),
            _interval(one, "latency_change", _change),
        ]
        for one in entries
        if one["policy"] == SEARCHED
    ]
    return markdown(
        [f"{SEARCHED} against {BASE}", "attainment, ratio", "mean latency"], rows
    )


def _interval(entry: Entry, name: str, form: Callable[[float | None], str]) -> str:
    if entry[name] is None:
        return "-"
    low, high = entry[f"{name}_ci95"]
    return f"{form(entry[name])} ({form(low)} to {form(high)})"


def arrivals_tables(entries: Entries) -> dict[str, str]:
    """Returns attainment, latency and G over the load, for each b_max."""

    def row_of(one: Entry) -> str:
        limit = limit_name(one["max_num_seqs"])
        return f"b_max = {limit}: {one['load']:g} x ({one['qps']:.2f}/s)"

    return {
        table_name("arrivals", name): _grid(entries, title, row_of, cell_of)
        for name, title, cell_of in _MEASURES
    }


def lengths_table(entries: Entries) -> str:
    """Returns attainment with wrong lengths, and its ratio to `fcfs`'s."""
    places = list(dict.fromkeys((one["mix"], one["come"]) for one in entries))
    by_row: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for one in entries:
        text = f"{100 * one['attainment']:.1f}"
        if one["policy"] != BASE:
            text += f" ({_ratio(one['attainment_ratio'])})"
            text += " **below**" if one["is_far_below"] else ""
        row = by_row.setdefault((one["lengths"], one["policy"]), {})
        row[one["mix"], one["come"]] = text
    rows = [
        [
            policy if lengths == NOT_ASKED else f"{lengths}: {policy}",
            *(cells.get(place, "-") for place in places),
        ]
        for (lengths, policy), cells in by_row.items()
    ]
    header = [f"{mix}, {come}" for mix, come in places]
    return markdown([f"attainment, % (ratio to {BASE})", *header], rows)


def lengths_latency_table(entries: Entries) -> str:
    """Returns the change of the mean latency against `fcfs` with wrong lengths."""
    places = list(dict.fromkeys((one["mix"], one["come"]) for one in entries))
    by_row: dict[str, dict[tuple[str, str], str]] = {}
    for one in entries:
        if one["policy"] != BASE:
            row = by_row.setdefault(f"{one['lengths']}: {one['policy']}", {})
            row[one["mix"], one["come"]] = _change(one["latency_change"])
    rows = [
        [name, *(cells.get(place, "-") for place in places)]
        for name, cells in by_row.items()
    ]
    header = [f"{mix}, {come}" for mix, come in places]
    return markdown([f"mean latency against {BASE}", *header], rows)


def plan_time_table(document: Mapping[str, Any]) -> str:
    """Returns what `plan_time.py` measured: time and worth of one search.

    Worth is G in units of what a long search finds, and of a budget it stands beside
    the time that the search took. Where no kernel was compiled the plain one stands
    alone.
    """
    entries = document["entries"]
    best = "compiled" if "compiled" in entries[0] else "python"
    budgets = [name for name in entries[0][best] if name.endswith("_ms")]
    kernels = list(dict.fromkeys(("python", best)))
    rows = [
        [
            f"N = {one['num_requests']}, b_max = {one['max_batch']}",
            *(f"{one[name]['default']['p50_ms']:.1f}" for name in kernels),
            f"{one[best]['default']['goal_to_sorted']:.2f}",
            f"{one[best]['default']['goal_to_long']:.2f}",
            f"{one[best]['start']['p50_ms']:.1f}",
            *(_worth_and_time(one[best][name]) for name in budgets),
        ]
        for one in entries
    ]
    header = [
        f"{document['default_proposals']:,} proposals, {best}",
        *(f"{name}, median ms" for name in kernels),
        "G / sorted start's",
        "G / long search's",
        "until the first change, ms",
        *(f"{name.replace('_', ' ')}: G, ms taken" for name in budgets),
    ]
    return markdown(header, rows)


def _worth_and_time(row: Mapping[str, Any]) -> str:
    tried = "" if row["num_proposals"] else ", nothing tried"
    return f"{row['goal_to_long']:.2f}, {row['p50_ms']:.1f}{tried}"


def served_plans_table(document: Mapping[str, Any]) -> str:
    """Returns what `plan_time.py` measured of a server's policy."""
    rows = [
        [
            f"{one['num_waiting']:,} waiting, {one['max_num_seqs']} slots",
            f"{one['window']}",
            f"{one['budget_ms']:g}",
            f"{one['p50_ms']:.1f}",
            f"{one['max_ms']:.1f}",
            f"{one['num_proposals']:,}",
        ]
        for one in document["served"]
    ]
    header = ["a server's policy", "window", "budget, ms", "median, ms", "most, ms"]
    return markdown([*header, "proposals"], rows)


def all_tables(report: Mapping[str, Any]) -> dict[str, str]:
    """Returns every table that the report's studies allow, by its name."""
    tables: dict[str, str] = {}
    if report.get("one_shot"):
        tables |= one_shot_tables(report["one_shot"])
        tables["claims"] = claims_table(report["claims"])
        tables["shares"] = shares_table(report["claims"])
        tables["search"] = search_table(report["one_shot"])
    if report.get("arrivals"):
        tables |= arrivals_tables(report["arrivals"])
    if report.get("lengths"):
        tables["lengths"] = lengths_table(report["lengths"])
        tables["lengths-latency"] = lengths_latency_table(report["lengths"])
    if report.get("plan_time"):
        tables["plan-time"] = plan_time_table(report["plan_time"])
        tables["served-plans"] = served_plans_table(report["plan_time"])
    return tables
