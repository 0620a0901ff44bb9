"""The data of a report's charts, as rows of plain values.

A row names the policy, strategy, load and class that it belongs to, so that the same
filters and tables work for all charts.
"""

import collections
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jserve_tools.reporting.cells import Cell, Row, distinct, mean_slos_s
from jserve_tools.reporting.tables import duration, look_up

_TBT_OF_REQUESTS = "TBT: 99th percentile of a request's times between tokens"
# Title of a latency, its key in a report, and the bound of an SLO that limits it.
_TIMES = (
    ("TTFT: time to the first token", "ttft_s", "ttft_s"),
    (_TBT_OF_REQUESTS, "tbt_p99_s", "tbt_s"),
    ("TBT: times between tokens, all pooled", "tbt_s", "tbt_s"),
    ("E2E: time to the last token", "e2e_s", "ttlt_s"),
)
_MAX_CURVE_POINTS = 120


def objectives(
    report: Mapping[str, Any], known: Sequence[Cell]
) -> dict[str, dict[str, tuple[float, str]]]:
    """Returns each class's bounds: seconds, and a text such as "TTFT ≤ 500.0ms".

    Bounds are the means that a simulation reports, or medians over requests; "≈" marks
    those that depend on the request.
    """
    bounds_s: dict[str, dict[str, list[float]]] = {
        name: {bound: [mean_s] for bound, mean_s in means_s.items()}
        for name, means_s in mean_slos_s(report).items()
    }
    for cell in known:
        for request in (row for rows in cell.values("requests") for row in rows):
            of_class = bounds_s.setdefault(str(request.get("service_class")), {})
            for bound, bound_s in request.get("slo", {}).items():
                of_class.setdefault(bound, []).append(bound_s)
    found: dict[str, dict[str, tuple[float, str]]] = {}
    for name, of_class in bounds_s.items():
        found[name] = {}
        for title, _, bound in _TIMES:
            if values_s := of_class.get(bound):
                typical_s = statistics.median(values_s)
                is_same = len(values_s) > 1 and max(values_s) - min(values_s) < 1e-9
                sign = "≤" if is_same else "≈"
                text = f"{title.partition(':')[0]} {sign} {duration(typical_s)}"
                found[name][bound] = (typical_s, text)
    return found


def _panel(cell: Cell, name: str, bounds: Sequence[str]) -> str:
    """Returns the title of a class's panel: its load, and its bounds line by line."""
    texts = [f"SLO: {one}" for one in bounds] or ["no SLO"]
    return "\n".join([f"{name} @ {cell.labels['load']}", *texts])


def classes(report: Mapping[str, Any], known: Sequence[Cell]) -> list[Row]:
    """Returns a row for each cell and class: attainment, with the objectives."""
    bounds = objectives(report, known)
    return [
        cell.labels
        | {"class": name, "attained_percent": 100 * one.value}
        | {"low_percent": 100 * one.low, "high_percent": 100 * one.high}
        | {"requests": sum(entry["num_requests"] for entry in cell.entries(name))}
        | {"panel": _panel(cell, name, [t for _, t in bounds.get(name, {}).values()])}
        for cell in known
        if not cell.is_goodput
        for name in cell.service_classes
        if (one := cell.attainment(name)) is not None
    ]


def latencies(report: Mapping[str, Any], known: Sequence[Cell]) -> list[Row]:
    """Returns a row for each cell, class and kind of latency: percentiles and SLO.

    The time between tokens is each request's own 99th percentile where requests are
    listed, and of all tokens pooled elsewhere.
    """
    bounds = objectives(report, known)
    rows: list[Row] = []
    for cell in known:
        has_requests = cell.request_times_s("tbt_p99_s") is not None
        for name in [] if cell.is_goodput else cell.service_classes:
            for title, key, bound in _TIMES:
                times = {
                    f"p{percent}_s": cell.percentile_s(key, percent, name)
                    for percent in (50, 90, 99)
                }
                if None in times.values() or (key == "tbt_s" and has_requests):
                    continue
                slo_s, slo = bounds.get(name, {}).get(bound, (None, ""))
                rows.append(
                    cell.labels
                    | {"class": name, "latency": title, **times}
                    | {"slo_s": slo_s, "slo": slo}
                    | {"panel": title.partition(":")[0] + ", "}
                )
                rows[-1]["panel"] += _panel(cell, name, [slo] if slo else [])
    titles = [title for title, _, _ in _TIMES]
    return sorted(rows, key=lambda row: titles.index(row["latency"]))


def failures(known: Sequence[Cell]) -> list[Row]:
    """Returns a row for each cell, class and cause of violations."""
    rows = []
    for cell in known:
        total = sum(run.get("num_requests", 0) for run in cell.runs)
        for name in [] if cell.is_goodput else cell.service_classes:
            causes: collections.Counter[str] = collections.Counter()
            for entry in cell.entries(name):
                causes.update(entry.get("violations_by_cause") or {})
            rows += [
                cell.labels
                | {"class": name, "cause": cause.replace("_", " "), "requests": count}
                | {"percent": 100 * count / total, "panel": cell.labels["load"]}
                for cause, count in sorted(causes.items())
                if total
            ]
    return rows


def messages(known: Sequence[Cell]) -> list[Row]:
    """Returns a row for each cell and reason of failures: count and a message."""
    return [
        cell.labels
        | {"reason": one["reason"], "requests": one["count"], "message": one["message"]}
        for cell in known
        for failures in cell.values("failures")
        for one in failures
    ]


def padding(known: Sequence[Cell]) -> list[Row]:
    """Returns two rows for each cell: padding of time, and of token positions."""
    return [
        cell.labels
        | {"of": of, "percent": 100 * share, "panel": f"{of}\n{cell.labels['load']}"}
        for of, key in (
            ("predicted step time", "pad_share_time"),
            ("token positions", "pad_share_tokens"),
        )
        for cell in known
        if (share := cell.mean(key)) is not None
    ]


def _by_strategy(known: Sequence[Cell]) -> list[tuple[str, list[Cell]]]:
    names = distinct([cell.labels["strategy"] for cell in known])
    return [
        (name, [cell for cell in known if cell.labels["strategy"] == name])
        for name in names
    ]


def staircase(report: Mapping[str, Any], known: Sequence[Cell]) -> list[Row]:
    """Returns the step-time curve, each strategy's edges, and the programs that ran.

    `kind` is "curve", "edge" or "ran"; only the last belongs to a policy.
    """
    curve = report.get("staircase") or {}
    tokens = np.asarray(curve.get("tokens", ()), np.float64)
    if not tokens.size:
        return []
    step_ms = 1e3 * np.asarray(curve["seconds"], np.float64)
    thinned = np.unique(np.linspace(0, tokens.size - 1, _MAX_CURVE_POINTS).astype(int))
    rows: list[Row] = []
    for strategy, here in _by_strategy(known):
        ran = [row for cell in here for row in _ran(cell)]
        edges = {
            curve["num_rows"] + edge * table["block_tokens"]
            for cell in here
            for table in cell.values("buckets")
            for edge in table["block_edges"]
        }
        if curve.get("is_discrete"):
            edges &= set(curve["tokens"])
        points = [("curve", tokens[place], step_ms[place]) for place in thinned]
        points += [
            ("edge", edge, np.interp(edge, tokens, step_ms))
            for edge in sorted(edges)
            if edge <= tokens[-1]
        ]
        if edges or ran:
            rows += [
                {"strategy": strategy, "kind": kind}
                | {"tokens": int(at), "step_ms": float(ms)}
                for kind, at, ms in points
            ]
        rows += ran
    return rows


def _ran(cell: Cell) -> list[Row]:
    """Returns a row for each program that ran: its tokens, time and steps."""
    return [
        cell.labels
        | {"kind": "ran", "tokens": one["num_rows"] + one["num_blocks"] * block_tokens}
        | {"program": f"{one['num_rows']} rows, {one['num_blocks']} blocks"}
        | {"step_ms": 1e3 * one["bucket_s"], "steps": one["num_steps"]}
        | {"real_tokens": one["used_tokens_mean"]}
        for run in cell.runs
        if (block_tokens := look_up(run, ("buckets", "block_tokens"))) is not None
        for one in run.get("steps_by_program", ())
    ]
