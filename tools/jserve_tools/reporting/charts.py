"""The charts of a report, declared with Altair (extra `report`).

A chart declares marks over rows; Vega draws it in the page, and vl-convert draws it as
PNG and SVG. A chart without rows is left out.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt

from jserve_tools.reporting import rows as report_rows
from jserve_tools.reporting.cells import Row, cells, distinct
from jserve_tools.reporting.choice import choice

FILTERS = ("policy", "strategy", "load", "class")
# Okabe and Ito's palette, which colour-blind readers can distinguish too.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
_DURATION = "datum.value < 1 ? format(1000 * datum.value, '~g') + ' ms' : "
_DURATION += "format(datum.value, '~g') + ' s'"
_LOG_TICKS = [
    digit * 10.0**power for power in range(-4, 6) for digit in (1, 1.5, 2, 3, 5, 7)
]
_LOG = alt.Scale(type="log", nice=False, padding=8)
_FEW = alt.Axis(tickCount=5)
_PANEL = alt.Header(title=None, labelExpr="split(datum.label, '\\n')", labelLimit=340)
# Fields of rows that only place or shade a mark; tooltips and tables show all others.
_HIDDEN = {"setting", "panel", "label", "value"}


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart with its title, caption and rows.

    Attributes:
      name: Name of its files and of its place in the page.
      title: One line that says what it shows.
      caption: Explanation of its marks.
      rows: Rows that it is drawn from.
      spec: Vega-Lite specification, with parameters such as `pick_policy` that filter
        rows; `usermeta` holds the limits of its panels' width.
    """

    name: str
    title: str
    caption: str
    rows: Sequence[Row]
    spec: Mapping[str, Any]


def fields(rows: Sequence[Row]) -> list[str]:
    """Returns the fields of rows that tooltips and a chart's table show."""
    return distinct([name for row in rows for name in row if name not in _HIDDEN])


def theme(*, is_dark: bool) -> dict[str, Any]:
    """Returns Vega-Lite's config for a light or a dark page."""
    ink, soft, line = ("#e8eaed", "#a3a9b3", "#3a3f47")
    if not is_dark:
        ink, soft, line = ("#1d1f23", "#5b616b", "#d9dce1")
    words = {"labelColor": ink, "titleColor": soft}
    lines = {"gridColor": line, "domainColor": line, "tickColor": line}
    symbols = {"symbolBaseFillColor": soft, "symbolBaseStrokeColor": soft}
    slo = {"color": ink, "stroke": ink, "strokeDash": [5, 3], "strokeWidth": 1.5}
    return {
        "background": "transparent",
        "font": "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
        "view": {"stroke": line},
        "axis": words | lines | {"labelLimit": 200},
        "header": words | {"labelFontSize": 11, "labelFontWeight": "bold"},
        "legend": words | symbols | {"orient": "bottom"},
        "range": {"category": _COLOURS},
        "style": {
            "edge": {"color": ink, "fill": ink},
            "curve": {"color": soft, "stroke": soft},
            "slo": slo,
        },
    }


def _specification(
    marks: Any,
    rows: Sequence[Row],
    *,
    facet: str = "panel",
    label: str = "setting",
    least_px: int = 220,
    x: str = "shared",
) -> dict[str, Any]:
    """Returns a chart with a panel for each value of the field `facet`.

    The field `label` holds the words along y. Panels that would be narrower than
    `least_px` are put below each other.
    """
    if facet == "strategy":
        rows = [row | {"panel": f"buckets: {row['strategy']}"} for row in rows]
        facet = "panel"
    names = distinct([row[facet] for row in rows])
    data = alt.Data(values=list(rows))
    spec: dict[str, Any] = (
        marks.properties(width=320, data=data)
        .facet(
            facet=alt.Facet(f"{facet}:N", sort=names, title=None, header=_PANEL),
            columns=min(2, len(names)),
        )
        .resolve_scale(x=x)
        .to_dict(validate=False)
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
    sizes = {"least_px": least_px, "label_px": 50 + 6 * min(25, longest)}
    return spec | {"usermeta": sizes | {"num_panels": len(names)}}


def _tooltip(rows: Sequence[Row]) -> list[alt.Tooltip]:
    values = {name: value for row in rows for name, value in row.items()}
    found = []
    for name in fields(rows):
        kind = "Q" if isinstance(values[name], (int, float)) else "N"
        tooltip = alt.Tooltip(f"{name}:{kind}", title=name.replace("_", " "))
        found.append(tooltip.format(",.3~f") if kind == "Q" else tooltip)
    return found


def _by(field: str, rows: Sequence[Row], **options: Any) -> dict[str, Any]:
    """Returns an axis or a colour by a field, its values in the order of rows."""
    values = distinct([row[field] for row in rows if field in row])
    return {"shorthand": f"{field}:N", "sort": values, "title": None, **options}


def _lines(
    rows: Sequence[Row], y: str = "setting", colour: str = "policy", **options: Any
) -> Any:
    """Returns a chart with a line for each value of a field, coloured by another."""
    options = options or {"legend": None}
    return alt.Chart(height=alt.Step(19)).encode(
        y=alt.Y(**_by(y, rows)),
        color=alt.Color(**_by(colour, rows, **options)),
        tooltip=_tooltip(rows),
    )


def _bars(rows: Sequence[Row], *, x: str, x_title: str, **options: Any) -> Any:
    axis = alt.X(x, title=x_title, axis=_FEW)
    return _lines(rows, **options).mark_bar().encode(x=axis, detail="class:N")


def _choice(rows: Sequence[Row]) -> Any:
    base = alt.Chart(height=alt.Step(42)).encode(
        x=alt.X(**_by("load", rows, axis=alt.Axis(labelAngle=0))).scale(padding=0.03),
        y=alt.Y(**_by("policy", rows)).scale(padding=0.06),
        tooltip=_tooltip(rows),
    )
    is_best = alt.when("datum.standing == 'best'")
    shades = alt.Scale(range=["#eff5fb", "#85bce0"], zero=False)
    boxes = base.mark_rect(cornerRadius=3, strokeWidth=4).encode(
        color=alt.Color("value:Q", legend=None, scale=shades),
        stroke=is_best.then(alt.value("#E69F00")).otherwise(alt.value(None)),
    )
    words = base.mark_text(lineBreak="\n", fontSize=11, dy=-7, color="#1d1f23")
    return boxes + words.encode(text="label:N")


def _classes(rows: Sequence[Row]) -> Any:
    base = _lines(rows)
    least = min(90, *(row["low_percent"] for row in rows)) // 10 * 10
    x = alt.X("attained_percent:Q", title="attained, %", axis=_FEW)
    bars = base.mark_rule(strokeWidth=3, opacity=0.5)
    points = base.mark_point(filled=True, size=60, opacity=1)
    return bars.encode(x="low_percent:Q", x2="high_percent:Q") + points.encode(
        x=x.scale(domain=[least, 100], zero=False)
    )


def _latencies(rows: Sequence[Row]) -> Any:
    base = _lines(rows)
    axis = alt.Axis(labelExpr=_DURATION, values=_LOG_TICKS, labelSeparation=8)
    points = base.mark_point(filled=True, size=70, opacity=1)
    slo = alt.Chart().transform_filter("isValid(datum.slo_s)").mark_rule(style="slo")
    return (
        slo.encode(x="slo_s:Q", tooltip=alt.Tooltip("slo:N", title="SLO"))
        + base.mark_rule(strokeWidth=2, opacity=0.8).encode(x="p50_s:Q", x2="p99_s:Q")
        + base.mark_rule(strokeWidth=7, opacity=0.8).encode(x="p50_s:Q", x2="p90_s:Q")
        + points.encode(x=alt.X("p50_s:Q", title=None, axis=axis, scale=_LOG))
    )


def _staircase(rows: Sequence[Row]) -> Any:
    ticks = alt.Axis(values=_LOG_TICKS, labelSeparation=8, format=",")
    base = alt.Chart(height=230).encode(
        x=alt.X("tokens:Q", title="tokens computed", axis=ticks, scale=_LOG),
        y=alt.Y("step_ms:Q", title="step, ms", axis=ticks, scale=_LOG),
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
    edge = edge.mark_point(shape="triangle-up", filled=True, size=45, style="edge")
    layers = [curve.mark_line(style="curve", strokeWidth=1.5), ran, edge]
    if all(row["kind"] != "ran" for row in rows):
        del layers[1]  # without steps, the scale of sizes would have no domain
    return alt.layer(*layers)


# Marks of a panel, title, caption, and options of `_specification`.
_CHARTS: dict[str, tuple[Callable[[Sequence[Row]], Any], str, str, Row]] = {
    "choice": (
        _choice,
        "Which policy is best at which load",
        "★ is the best at its load. ≈ is within noise of the best: the 95 % interval "
        "of the difference includes zero. Below each number is its 95 % interval.",
        {"facet": "strategy", "label": "policy", "least_px": 170},
    ),
    "classes": (
        _classes,
        "Attainment by class",
        "Share of requests that attained every objective of their class, given above "
        "each panel; ≈ marks a mean or median over requests. The bars are 95 % Wilson "
        "intervals.",
        {},
    ),
    "latencies": (
        _latencies,
        "Latencies against their objectives",
        "Point: median. Thick line: to the 90th percentile; thin line: to the 99th. "
        "Dashed: the class's objective, if it has one. Token k is due at TTFT + k TBT, "
        "so an answer that began early may pause for longer. The axis is logarithmic.",
        {"x": "independent"},
    ),
    "failures": (
        functools.partial(
            _bars,
            x="sum(percent):Q",
            x_title="% of requests",
            colour="cause",
            scale=alt.Scale(scheme="tableau10"),
        ),
        "Why requests failed or violated their SLO",
        "Each request counts once: by the first objective that it violated, or by its "
        "failure.",
        {},
    ),
    "padding": (
        functools.partial(_bars, x="percent:Q", x_title="padding, %"),
        "Padding",
        "Share of the predicted step time, and of the computed token positions, that "
        "is padding.",
        {},
    ),
    "staircase": (
        _staircase,
        "The staircase: step time by tokens, and the buckets that ran",
        "Line: time of a step without padding, or of the buckets that were timed. "
        "Triangles: compiled block edges beside full decode rows. Circles: programs "
        "that ran, larger for more steps. Both axes are logarithmic.",
        {"facet": "strategy", "label": ""},
    ),
}


def charts(report: Mapping[str, Any]) -> list[Chart]:
    """Returns the charts for which a report has data, in the page's order.

    Raises:
      ValueError: If the report cannot be read.
    """
    known = cells(report)
    rows = {
        "choice": choice(known),
        "classes": report_rows.classes(report, known),
        "latencies": report_rows.latencies(report, known),
        "failures": report_rows.failures(known),
        "padding": report_rows.padding(known),
        "staircase": report_rows.staircase(report, known),
    }
    found = []
    for name, (draw, title, caption, options) in _CHARTS.items():
        if here := rows[name]:
            spec = _specification(draw(here), here, **options)
            found.append(Chart(name, title, caption, here, spec))
    return found


def overview(found: Sequence[Chart]) -> dict[str, Any]:
    """Returns one specification of the charts of attainment, latency and failures."""
    head = {name: found[0].spec[name] for name in ("$schema", "params")}
    parts = [
        {"title": one.title, **one.spec}
        for one in found
        if one.name in ("choice", "classes", "latencies", "failures")
    ]
    for part in parts:
        del part["$schema"], part["params"], part["usermeta"]
    return head | {"vconcat": parts, "resolve": {"scale": {"color": "independent"}}}
