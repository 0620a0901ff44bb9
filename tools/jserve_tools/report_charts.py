"""The charts of a report, declared with Altair (extra `report`).

A chart is a grammar of marks over rows; Vega draws it in the page, and vl-convert
draws the same as PNG and SVG. A chart without rows is left out.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from jserve_tools import report_rows
from jserve_tools.report_cells import cells, distinct
from jserve_tools.report_choice import choice, judged_by
from jserve_tools.report_rows import Row

FILTERS = ("policy", "strategy", "load", "class")
# Okabe and Ito's palette: told apart by colour-blind readers too.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
_DURATION = "datum.value < 1 ? format(1000 * datum.value, '~g') + ' ms' : "
_DURATION += "format(datum.value, '~g') + ' s'"
_LOG_TICKS = [
    digit * 10.0**power for power in range(-4, 6) for digit in (1, 1.5, 2, 3, 5, 7)
]
_TOP_ONLY = ("$schema", "params", "usermeta")  # of a specification
_FEW = alt.Axis(tickCount=5)
_PANEL = alt.Header(title=None, labelExpr="split(datum.label, '\\n')", labelLimit=340)

# Fields of rows that only place or order a mark; all others are told.
_UNTOLD = {"setting", "panel", "latency", "label", "shade", "order", "since_s"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart, its words, and its rows.

    Attributes:
      name: Of its files and of its place in the page.
      title: What it shows, in a line.
      caption: How to read it.
      rows: What it is drawn from.
      spec: Vega-Lite, with parameters `pick_policy` and so on that filter rows;
        `usermeta` says how wide its panels may be.
    """

    name: str
    title: str
    caption: str
    rows: Sequence[Row]
    spec: Mapping[str, Any]


def fields(rows: Sequence[Row]) -> list[str]:
    """Returns what tooltips and the table beside a chart say of its rows."""
    return distinct([name for row in rows for name in row if name not in _UNTOLD])


def theme(*, is_dark: bool) -> dict[str, Any]:
    """Returns Vega-Lite's config for a light or a dark page."""
    ink, soft, line = ("#e8eaed", "#a3a9b3", "#3a3f47")
    if not is_dark:
        ink, soft, line = ("#1d1f23", "#5b616b", "#d9dce1")
    return {
        "background": "transparent",
        "font": "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
        "view": {"stroke": line},
        "axis": {
            **{"labelColor": ink, "titleColor": soft, "gridColor": line},
            **{"domainColor": line, "tickColor": line, "labelLimit": 150},
        },
        "header": {"labelColor": ink, "labelFontSize": 11, "labelFontWeight": "bold"},
        "legend": {
            **{"labelColor": ink, "titleColor": soft, "orient": "bottom"},
            **{"symbolBaseFillColor": soft, "symbolBaseStrokeColor": soft},
        },
        "range": {"category": _COLOURS},
        "style": {
            "ink": {"color": ink, "fill": ink},
            "curve": {"color": soft, "stroke": soft},
            "slo": {
                "color": ink,
                "stroke": ink,
                "strokeDash": [5, 3],
                "strokeWidth": 1.5,
            },
        },
    }


def _chart(
    marks: Any,
    rows: Sequence[Row],
    *,
    facet: str = "panel",
    label: str = "setting",
    least_px: int = 220,
    columns: int = 2,
    resolve: Mapping[str, str] | None = None,
    **words: str,
) -> Chart:
    """Returns a chart with a panel for each value of a field.

    Args:
      marks: A panel, without data.
      rows: The data.
      facet: The field that has the panels.
      label: The field whose words stand along y, if any.
      least_px: Narrowest panel, before they go below each other.
      columns: Panels in a row of a picture in a file.
      resolve: Scales that are not shared by panels.
      **words: The chart's name, title and caption.
    """
    names = distinct([row[facet] for row in rows])
    data = alt.Data(values=list(rows))  # type: ignore[no-untyped-call]
    faceted = marks.properties(width=320, data=data).facet(
        facet=alt.Facet(f"{facet}:N", sort=names, title=None, header=_PANEL),
        columns=min(columns, len(names)),
    )
    spec: dict[str, Any] = faceted.resolve_scale(**resolve or {}).to_dict(
        validate=False
    )
    del spec["config"]  # the page's theme is the only one
    spec["params"] = [{"name": f"pick_{name}", "value": "all"} for name in FILTERS]
    spec["transform"] = [
        {
            "filter": f"pick_{name} == 'all' || !isValid(datum['{name}']) || "
            f"datum['{name}'] == pick_{name}"
        }
        for name in FILTERS
    ]
    longest = max(len(str(row.get(label, ""))) for row in rows)
    spec["usermeta"] = {
        "least_px": least_px,
        "label_px": 50 + 6 * min(18, longest),
        "num_panels": len(names),
    }
    return Chart(rows=rows, spec=spec, **words)


def _tooltip(rows: Sequence[Row]) -> list[alt.Tooltip]:
    numbers = {
        name
        for row in rows
        for name, value in row.items()
        if type(value) in (int, float)
    }
    return [
        alt.Tooltip(name, type="quantitative", title=_title(name), format=",.3~f")
        if name in numbers
        else alt.Tooltip(name, type="nominal", title=_title(name))
        for name in fields(rows)
    ]


def _title(field: str) -> str:
    return field.replace("_", " ")


def _by(field: str, rows: Sequence[Row], **options: Any) -> dict[str, Any]:
    """Returns an axis or a colour by a field, its values in the order of rows."""
    values = distinct([row[field] for row in rows if field in row])
    return {"shorthand": f"{field}:N", "sort": values, "title": None, **options}


def _by_setting(rows: Sequence[Row]) -> Any:
    """Returns a chart with a line for each setting, in its policy's colour."""
    return alt.Chart(height=alt.Step(19)).encode(
        y=alt.Y(**_by("setting", rows)),
        color=alt.Color(**_by("policy", rows, legend=None)),
        tooltip=_tooltip(rows),
    )


def _choice(rows: Sequence[Row]) -> Chart:
    base = alt.Chart(height=alt.Step(42)).encode(
        x=alt.X(**_by("load", rows, axis=alt.Axis(labelAngle=0))).scale(padding=0.03),
        y=alt.Y(**_by("policy", rows)).scale(padding=0.06),
        tooltip=_tooltip(rows),
    )
    is_best, is_deep = (
        alt.when("datum.standing == 'best'"),
        alt.when("datum.shade > 0.6"),
    )
    boxes = base.mark_rect(cornerRadius=3, strokeWidth=4).encode(
        color=alt.Color("value:Q", title=rows[0]["unit"]).scale(scheme="blues"),
        stroke=is_best.then(alt.value("#E69F00")).otherwise(alt.value(None)),
    )
    words = base.mark_text(lineBreak="\n", fontSize=11, dy=-7).encode(
        text="label:N",
        color=is_deep.then(alt.value("white")).otherwise(alt.value("#1d1f23")),
    )
    return _chart(
        boxes + words,
        rows,
        facet="strategy",
        label="policy",
        least_px=170,
        columns=3,
        name="choice",
        title="What to choose at which load",
        caption="★ is the best at its load. ≈ cannot be told from it: the interval of "
        "the difference includes zero. Below each number is its 95 % interval.",
    )


def _classes(rows: Sequence[Row]) -> Chart:
    base = _by_setting(rows)
    least = min(90, *(row["low_percent"] for row in rows)) // 10 * 10
    x = alt.X("attained_percent:Q", title="attained, %", axis=_FEW)
    bars = base.mark_rule(strokeWidth=3, opacity=0.5)
    points = base.mark_point(filled=True, size=60, opacity=1)
    return _chart(
        bars.encode(x="low_percent:Q", x2="high_percent:Q")
        + points.encode(x=x.scale(domain=[least, 100], zero=False)),
        rows,
        name="classes",
        title="Attainment by class, and its objectives",
        caption="Requests that attained every objective of their class; the bars are "
        "95 % Wilson intervals. Where a bound depends on the request, ≈ stands before "
        "the typical one.",
    )


def _latency(rows: Sequence[Row]) -> Chart:
    base = _by_setting(rows)
    axis = alt.Axis(labelExpr=_DURATION, values=_LOG_TICKS, labelSeparation=8)
    x = alt.X("p50_s:Q", title=None, axis=axis).scale(type="log", nice=False, padding=8)
    slo = alt.Chart().transform_filter("isValid(datum.slo_s)").mark_rule(style="slo")
    points = base.mark_point(filled=True, size=70, opacity=1)
    return _chart(
        slo.encode(x="slo_s:Q", tooltip=alt.Tooltip("slo:N", title="SLO"))
        + base.mark_rule(strokeWidth=2, opacity=0.8).encode(x="p50_s:Q", x2="p99_s:Q")
        + base.mark_rule(strokeWidth=7, opacity=0.8).encode(x="p50_s:Q", x2="p90_s:Q")
        + points.encode(x=x),
        rows,
        resolve={"x": "independent"},
        name=rows[0]["latency"].partition(":")[0].lower(),
        title=rows[0]["latency"],
        caption="Point: median; thick to p90, thin to p99; logarithmic. The dashed "
        "line is the class's SLO, where it has one.",
    )


def _failures(rows: Sequence[Row]) -> Chart:
    bars = _by_setting(rows).mark_bar()
    return _chart(
        bars.encode(
            x=alt.X("sum(percent):Q", title="% of requests", axis=_FEW),
            color=alt.Color(**_by("cause", rows)).scale(scheme="tableau10"),
            detail="class:N",
        ),
        rows,
        name="failures",
        title="Why requests failed or violated their SLO",
        caption="Each violation counts once, by the first objective that it violated, "
        "or by its failure.",
    )


def _padding(rows: Sequence[Row]) -> Chart:
    bars = _by_setting(rows).mark_bar()
    return _chart(
        bars.encode(x=alt.X("percent:Q", title="padding, %", axis=_FEW)),
        rows,
        name="padding",
        title="Padding",
        caption="Share of the predicted step time, and of the computed token "
        "positions, that was padding.",
    )


def _staircase(rows: Sequence[Row]) -> Chart:
    ticks = alt.Axis(values=_LOG_TICKS, labelSeparation=8, format=",")
    log = alt.Scale(type="log", nice=False, padding=8)
    base = alt.Chart(height=230).encode(
        x=alt.X("tokens:Q", title="tokens computed", axis=ticks, scale=log),
        y=alt.Y("step_ms:Q", title="step, ms", axis=ticks, scale=log),
        tooltip=_tooltip(rows),
    )
    curve, ran, edge = (
        base.transform_filter(f"datum.kind == '{kind}'")
        for kind in ("curve", "ran", "edge")
    )
    ran = ran.mark_point(filled=True, opacity=0.45).encode(
        size=alt.Size("steps:Q").scale(range=[8, 700]),
        color=alt.Color(**_by("policy", rows)),
    )
    layers = [
        curve.mark_line(style="curve", strokeWidth=1.5),
        ran,
        edge.mark_point(shape="triangle-up", filled=True, size=45, style="ink"),
    ]
    if all(row["kind"] != "ran" for row in rows):
        del layers[1]  # the scale of no steps has no size
    return _chart(
        alt.layer(*layers),
        rows,
        facet="strategy",
        label="",
        name="staircase",
        title="The staircase: buckets, and where steps fell",
        caption="Line: the time of a step of as many tokens without padding, or of the "
        "buckets that were timed. Triangles: the edges that are compiled, with full "
        "decode rows. Circles: programs that ran, larger with more steps.",
    )


def _starts(rows: Sequence[Row]) -> Chart:
    bars = alt.Chart(height=alt.Step(26)).mark_bar()
    return _chart(
        bars.encode(
            y=alt.Y(**_by("strategy", rows)),
            x=alt.X("since_s:Q", title="seconds from start", axis=_FEW),
            x2="until_s:Q",
            color=alt.Color(**_by("stage", rows)).legend(columns=1),
            tooltip=_tooltip(rows),
        ),
        rows,
        facet="start",
        label="strategy",
        name="start-up",
        title="Start-up",
        caption="From the start until requests are served, and until no program is "
        "left to compile.",
    )


def _programs(rows: Sequence[Row]) -> Chart:
    bars = alt.Chart(height=alt.Step(13)).mark_bar()
    return _chart(
        bars.encode(
            y=alt.Y(**_by("program", rows)),
            x=alt.X("seconds:Q", title="seconds", axis=_FEW),
            color=alt.Color(**_by("part", rows)),
            order="order:Q",
            tooltip=_tooltip(rows),
        ),
        rows,
        facet="strategy",
        label="program",
        resolve={"y": "independent"},
        name="programs",
        title="Programs at the start",
        caption="Decode rows by prefill blocks, in the order in which they were made: "
        "tracing and lowering, then compiling or loading.",
    )


def charts(report: Mapping[str, Any]) -> list[Chart]:
    """Returns the charts for which a report has data, in reading order.

    Raises:
      ValueError: If the report cannot be read.
    """
    known = cells(report)
    has_objectives = judged_by(known)[0] != "throughput"
    times = report_rows.latencies(report, known)
    found = [
        (_choice, choice(known)),
        (_classes, report_rows.classes(report, known) if has_objectives else []),
        *(
            (_latency, [row for row in times if row["latency"].startswith(name)])
            for name in ("TTFT", "TBT", "E2E")
        ),
        (_failures, report_rows.failures(known)),
        (_padding, report_rows.padding(known)),
        (_staircase, report_rows.staircase(report, known)),
        (_starts, report_rows.starts(known)),
        (_programs, report_rows.programs(known)),
    ]
    return [draw(rows) for draw, rows in found if rows]


def overview(found: Sequence[Chart]) -> dict[str, Any]:
    """Returns one picture of the charts that say how requests fared."""
    shown = ("choice", "classes", "ttft", "tbt", "e2e", "failures")
    parts = [
        {"title": one.title}
        | {name: one.spec[name] for name in one.spec if name not in _TOP_ONLY}
        for one in found
        if one.name in shown
    ]
    head = {name: found[0].spec[name] for name in ("$schema", "params")}
    return head | {"vconcat": parts, "resolve": {"scale": {"color": "independent"}}}
