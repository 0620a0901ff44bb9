"""The three figures: goodput, overload, transient load.

A policy has the same colour everywhere. Simulated results are solid; the paper's, which
it measured on its own machine, are open marks or dashed lines.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import vl_convert

from benchmarks.slidingserve import paper

Entries = Sequence[Mapping[str, Any]]

# Okabe and Ito's palette, which colour-blind readers can distinguish too.
_COLOURS = {
    "fcfs": "#999999",
    "sjf": "#56B4E9",
    "edf": "#0072B2",
    "qoserve": "#D55E00",
    "sliding, as published": "#CC79A7",
    "sliding": "#009E73",
}
_MARKS = {"circle": paper.QWEN, "triangle": paper.LLAMA}


def _colour(entries: Entries) -> alt.Color:
    rows = {one["row"] for one in entries}
    shown = [row for row in _COLOURS if row in rows]
    scale = alt.Scale(domain=shown, range=[_COLOURS[row] for row in shown])
    return alt.Color("row:N", scale=scale, title=None)


def goodput_chart(entries: Entries) -> Any:
    """Returns bars of goodput in units of `edf`'s, with the paper's ratios as marks."""
    by_case = {(one["shape"], one["workload"], one["row"]): one for one in entries}

    def rows() -> Iterator[dict[str, Any]]:
        for one in entries:
            base = by_case[one["shape"], one["workload"], "edf"]["qps"]
            if one["row"] not in _COLOURS or base <= 0:
                continue
            seeds = [seed["qps"] / base for seed in one["seeds"]]
            row = {name: one[name] for name in ("shape", "workload", "row")}
            row |= {"ratio": one["qps"] / base, "low": min(seeds), "high": max(seeds)}
            row["label"] = f"{one['qps']:.2f}"
            if one["row"] in paper.POLICIES:
                for mark, model in _MARKS.items():
                    row[mark] = paper.goodput_ratio(
                        one["workload"], one["row"], "edf", model
                    )
            yield row

    # Layers: bars, the range over seeds, rates, and the paper's ratios.
    order = list(_COLOURS)
    base = alt.Chart(alt.Data(values=[*rows()])).encode(
        x=alt.X("row:N", title=None, sort=order, axis=None)
    )
    bars = base.mark_bar().encode(
        y=alt.Y("ratio:Q", title="goodput, in units of edf's"), color=_colour(entries)
    )
    spread = base.mark_rule().encode(y="low:Q", y2="high:Q")
    text = base.mark_text(angle=270, align="left", dx=4, baseline="middle").encode(
        y=alt.value(176), text="label:N"
    )
    marks = [
        base.mark_point(shape=mark, fill="white", color="#222222").encode(y=f"{mark}:Q")
        for mark in _MARKS
    ]
    return (
        alt.layer(bars, spread, text, *marks)
        .properties(width=150, height=180)
        .facet(
            column=alt.Column("workload:N", title=None),
            row=alt.Row("shape:N", title=None),
        )
        .properties(
            title=f"Goodput at 1 % violations; circle and triangle: the paper's, "
            f"{paper.QWEN} and {paper.LLAMA}"
        )
    )


def overload_chart(entries: Entries) -> Any:
    """Returns violations over load, with a panel for each workload and shape."""

    def rows() -> Iterator[dict[str, Any]]:
        for one in entries:
            low, high = one["percent_ci95"]
            row = {name: one[name] for name in ("shape", "workload", "row", "load")}
            yield row | {"by": "ours", "percent": one["percent"], "lo": low, "hi": high}
            yield row | {"by": "paper", "percent": one["paper_percent"]}

    base = alt.Chart(alt.Data(values=[*rows()])).encode(
        x=alt.X("load:Q", title="load, in sliding's goodputs", scale={"zero": False}),
        color=_colour(entries),
    )
    lines = base.mark_line(point=True).encode(
        y=alt.Y("percent:Q", title="violations, %", scale=alt.Scale(domain=[0, 100])),
        strokeDash=alt.StrokeDash("by:N", title=None),
        detail="by:N",
    )
    spread = base.mark_rule().encode(y="lo:Q", y2="hi:Q")
    return (
        alt.layer(lines, spread)
        .properties(width=160, height=180)
        .facet(
            column=alt.Column("workload:N", title=None),
            row=alt.Row("shape:N", title=None),
        )
        .resolve_scale(x="independent")
    )


def transient_chart(entries: Entries) -> Any:
    """Returns cumulated violations over time; the load changes at the grid lines."""

    def rows() -> Iterator[dict[str, Any]]:
        for one in entries:
            for index, violations in enumerate([0.0, *one["curve"]]):
                yield {
                    "panel": f"{one['workload']}, {one['shape']}: "
                    + " and ".join(f"{qps:.2f}" for qps in one["levels_qps"])
                    + " requests/s",
                    "row": one["row"],
                    "time_s": index * one["bin_s"],
                    "violations": violations,
                }

    first = entries[0]
    changes_s = np.arange(0, first["duration_s"] + 1, first["period_s"]).tolist()
    base = alt.Chart(alt.Data(values=[*rows()])).encode(
        x=alt.X("time_s:Q", title="seconds", axis=alt.Axis(values=changes_s)),
        y=alt.Y("violations:Q", title="requests ended with a violation, mean of seeds"),
        color=_colour(entries),
    )
    return (
        base.mark_line()
        .properties(width=480, height=280)
        .facet(column=alt.Column("panel:N", title=None))
        .properties(title="Violations under a load that alternates")
    )


def draw_all(report: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns the figures of all stages in the report, by file name."""
    pictures = {}
    for stage, make in (
        ("goodput", goodput_chart),
        ("overload", overload_chart),
        ("transient", transient_chart),
    ):
        if report.get(stage):
            chart = make(report[stage]).to_dict()
            pictures[f"{stage}.png"] = vl_convert.vegalite_to_png(chart, ppi=110)
    return pictures
