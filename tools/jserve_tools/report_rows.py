"""What the charts of a report show, as rows of plain values.

Every row says its policy, strategy, load and class as far as it is of one, so that
filters and tables treat all charts the same.
"""

import collections
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jserve_tools.report_cells import Cell, distinct, look_up
from jserve_tools.tables import duration

Row = dict[str, Any]

_BOUNDS = {"ttft_s": "TTFT", "tbt_s": "TBT", "ttlt_s": "E2E"}
_TIMES = (
    ("TTFT: time to the first token", "ttft_s", "ttft_s"),
    ("TBT: times between tokens, all pooled", "tbt_s", "tbt_s"),
    ("E2E: time to the last token", "e2e_s", "ttlt_s"),
)
_MAX_CURVE_POINTS = 120


def where(cell: Cell) -> Row:
    """Returns what every row of a cell says."""
    return {
        "policy": cell.policy,
        "strategy": cell.bucket_strategy,
        "load": cell.load,
        "setting": cell.setting,
    }


def objectives(
    report: Mapping[str, Any], known: Sequence[Cell]
) -> dict[str, dict[str, tuple[float, str]]]:
    """Returns each class's bounds: seconds, and the text that says so.

    Bounds in seconds are taken as they are; where they depend on the request, the
    median of the requests is taken, or what multiples of an idle server's times come
    to for the mean prompt.
    """
    found: dict[str, dict[str, tuple[float, str]]] = collections.defaultdict(dict)

    def put(name: str, bound: str, bound_s: float, sign: str, why: str = "") -> None:
        text = f"{_BOUNDS[bound]} {sign} {duration(bound_s)}{why}"
        found[name][bound] = (bound_s, text)

    for name, bounds_s in (look_up(report, ("workload", "promises")) or {}).items():
        for bound, bound_s in bounds_s.items():
            put(name, bound, bound_s, "≈")
    idle = report.get("yardstick") or {}
    for one in look_up(report, ("workload", "service_classes")) or ():
        for bound in _BOUNDS:
            if one.get(bound) is not None:
                put(one["name"], bound, one[bound], "≤")
        if idle and one.get("ttft_slowdown"):
            prompt = look_up(report, ("workload", "prompt_tokens_mean")) or 0.0
            idle_s = float(np.interp(prompt, idle["prompt_tokens"], idle["ttft_s"]))
            times = one["ttft_slowdown"]
            put(one["name"], "ttft_s", times * idle_s, "≈", f" ({times:g} x idle)")
        if idle and one.get("tbt_step_multiple"):
            times = one["tbt_step_multiple"]
            why = f" ({times:g} x idle)"
            put(one["name"], "tbt_s", times * idle["step_s"], "≤", why)
    drawn: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for request in _requests(known):
        for bound, bound_s in request.get("slo", {}).items():
            drawn[str(request.get("service_class")), bound].append(bound_s)
    for (name, bound), bounds_s in drawn.items():
        if bound not in found[name]:
            sign = "≤" if max(bounds_s) - min(bounds_s) < 1e-9 else "≈"
            put(name, bound, statistics.median(bounds_s), sign)
    return dict(found)


def _requests(known: Sequence[Cell]) -> Iterator[Mapping[str, Any]]:
    for cell in known:
        for rows in cell.values("requests"):
            yield from rows


def _panel(cell: Cell, name: str, bounds: Sequence[str]) -> str:
    """Returns the title of a class's panel: its load, and its bounds line by line."""
    return "\n".join([f"{name} @ {cell.load}", *(bounds or ["no objective"])])


def classes(report: Mapping[str, Any], known: Sequence[Cell]) -> list[Row]:
    """Returns a row for each cell and class: attainment beside the objectives."""
    texts: dict[str, list[str]] = collections.defaultdict(list)
    for name, bounds in objectives(report, known).items():
        texts[name] = [text for _, text in bounds.values()]
    return [
        where(cell)
        | {"class": name, "panel": _panel(cell, name, texts[name])}
        | {"attained_percent": 100 * one.value}
        | {"low_percent": 100 * one.low, "high_percent": 100 * one.high}
        | {"requests": sum(entry["num_requests"] for entry in cell.entries(name))}
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
        if cell.is_goodput:
            continue
        for name in cell.service_classes:
            for title, key, bound in _TIMES:
                if key == "tbt_s" and cell.request_times_s("tbt_p99_s") is not None:
                    title = "TBT: 99th percentile of a request's times between tokens"
                    key = "tbt_p99_s"
                times = {
                    f"p{percent}_s": cell.percentile_s(key, percent, name)
                    for percent in (50, 90, 99)
                }
                if None in times.values():
                    continue
                slo = bounds.get(name, {}).get(bound)
                rows.append(
                    where(cell)
                    | {"class": name, "latency": title, **times}
                    | {"slo_s": slo and slo[0], "slo": slo[1] if slo else ""}
                    | {"panel": _panel(cell, name, [slo[1]] if slo else [])}
                )
    return rows


def failures(known: Sequence[Cell]) -> list[Row]:
    """Returns a row for each cell, class and cause of violations."""
    rows = []
    for cell in known:
        if cell.is_goodput:
            continue
        total = sum(run.get("num_requests", 0) for run in cell.runs)
        for name in cell.service_classes:
            causes: collections.Counter[str] = collections.Counter()
            for entry in cell.entries(name):
                causes.update(entry.get("violations_by_cause") or {})
            rows += [
                where(cell)
                | {"class": name, "cause": cause.replace("_", " "), "requests": count}
                | {"percent": 100 * count / total, "panel": cell.load}
                for cause, count in sorted(causes.items())
                if total
            ]
    return rows


def messages(known: Sequence[Cell]) -> list[Row]:
    """Returns a row for each reason that a server gave for failures."""
    rows = []
    for cell in known:
        counts = collections.Counter(
            (str(one.get("violation")), str(one["message"]))
            for one in _requests([cell])
            if one.get("message")
        )
        rows += [
            where(cell) | {"cause": cause, "message": message, "requests": count}
            for (cause, message), count in counts.most_common(20)
        ]
    return rows


def padding(known: Sequence[Cell]) -> list[Row]:
    """Returns a row for each cell and what is padded: time, and token positions."""
    return [
        where(cell) | {"of": of, "percent": 100 * share, "panel": f"{of}\n{cell.load}"}
        for of, key in (
            ("predicted step time", "pad_share_time"),
            ("token positions", "pad_share_tokens"),
        )
        for cell in known
        if (share := cell.mean(key)) is not None
    ]


def staircase(report: Mapping[str, Any], known: Sequence[Cell]) -> list[Row]:
    """Returns the step-time curve, each strategy's edges, and where steps fell.

    `kind` is "curve", "edge" or "ran"; rows of the first two are of no one policy.
    """
    curve = report.get("staircase") or {}
    tokens = np.asarray(curve.get("tokens", ()), np.float64)
    if not tokens.size:
        return []
    step_ms = 1e3 * np.asarray(curve["seconds"], np.float64)
    thinned = np.unique(np.linspace(0, tokens.size - 1, _MAX_CURVE_POINTS).astype(int))
    rows: list[Row] = []
    for strategy in distinct([cell.bucket_strategy for cell in known]):
        here = [cell for cell in known if cell.bucket_strategy == strategy]
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
        rows += [
            {
                "strategy": strategy,
                "kind": kind,
                "tokens": int(at),
                "step_ms": float(ms),
            }
            for kind, at, ms in points
            if edges or ran
        ] + ran
    return rows


def _ran(cell: Cell) -> list[Row]:
    """Returns a row for each program that ran: its tokens, time and steps."""
    block_tokens = look_up(next(iter(cell.values("buckets")), {}), ("block_tokens",))
    if block_tokens is None:
        return []
    groups: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for programs in cell.values("steps_by_program"):
        for one in programs:
            groups.setdefault((one["num_rows"], one["num_blocks"]), []).append(one)
    found = []
    for (num_rows, num_blocks), group in sorted(groups.items()):
        counts = [one["num_steps"] for one in group]
        if sum(counts):
            means = {
                key: float(np.average([one[key] for one in group], weights=counts))
                for key in ("bucket_s", "used_tokens_mean")
            }
            found.append(
                where(cell)
                | {"kind": "ran", "program": f"{num_rows} rows, {num_blocks} blocks"}
                | {"tokens": num_rows + num_blocks * block_tokens}
                | {"step_ms": 1e3 * means["bucket_s"], "steps": sum(counts)}
                | {"real_tokens": means["used_tokens_mean"]}
            )
    return found


_STARTS = {
    "start_up_cold": "empty compile cache",
    "start_up_warm": "full compile cache",
    "start_up": "compile cache as it was",
}


def starts(known: Sequence[Cell]) -> list[Row]:
    """Returns a row for each strategy, kind of start and stage, mean over its runs."""
    rows = []
    for key, start in _STARTS.items():
        for strategy in distinct([cell.bucket_strategy for cell in known]):
            here = [cell for cell in known if cell.bucket_strategy == strategy]
            found = [one for cell in here for one in cell.values(key)]
            ready_s, warm_s = (
                statistics.fmean(known_s) if known_s else None
                for known_s in (
                    [one[name] for one in found if one.get(name) is not None]
                    for name in ("ready_s", "warm_s")
                )
            )
            for order, stage, since_s, until_s in (
                (0, "until requests are served", 0.0, ready_s),
                (1, "until every program is there", ready_s or 0.0, warm_s),
            ):
                if until_s is not None:
                    rows.append(
                        {"strategy": strategy, "start": start, "stage": stage}
                        | {"order": order, "since_s": since_s, "until_s": until_s}
                    )
    return rows


def programs(known: Sequence[Cell]) -> list[Row]:
    """Returns a row for each program of each strategy's first start, and its parts."""
    rows: list[Row] = []
    for strategy in distinct([cell.bucket_strategy for cell in known]):
        lists = [
            told
            for key in _STARTS
            for cell in known
            if cell.bucket_strategy == strategy
            for told in cell.values(key, "programs")
            if told
        ]
        for one in lists[0] if lists else ():
            size, source = one.get("executable_bytes"), one.get("source", "compiled")
            made = "compile" if source == "compiled" else "load"
            rows += [
                {"strategy": strategy, "program": str(one.get("program"))}
                | {"part": part, "seconds": one[key], "source": source, "order": order}
                | {"MiB": None if size is None else size / 2**20}
                for order, part, key in (
                    (0, "trace", "trace_s"),
                    (1, made, "compile_s"),
                )
                if one.get(key) is not None
            ]
    return rows
