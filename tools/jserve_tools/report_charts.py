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

Column = tuple[str, str, str]  # field, title, and format of numbers or ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart, its words, and its rows.

    Attributes:
      name: Of its files and of its place in the page.
      title: What it shows, in a line.
      caption: How to read it.
      columns: What its tooltips and the table beside it say.
      rows: What it is drawn from.
      spec: Vega-Lite, with parameters `pick_policy` and so on that filter rows;
        `usermeta` says how wide its panels may be.
    """

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: Sequence[Mapping[str, Any]]
    spec: Mapping[str, Any]


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


def _finish(
    chart: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    facet: str = "panel",
    least_px: int = 220,
    label: str = "setting",
    columns: int = 2,
    **resolve: Any,
) -> dict[str, Any]:
    """Returns a chart's panels as Vega-Lite that filters its rows.

    Args:
      chart: Of one panel, without data.
      rows: The data.
      facet: The field that has a panel for each value.
      least_px: Narrowest panel, before they go below each other.
      label: The field whose words stand along y, if any.
      columns: Panels in a row of a picture in a file.
      **resolve: Scales that panels have their own of.
    """
    names = distinct([row[facet] for row in rows])
    label_px = 50 + 6 * min(18, max(len(str(row.get(label, ""))) for row in rows))
    by_panel = alt.Facet(f"{facet}:N", sort=names, title=None, header=_PANEL)
    data = alt.Data(values=list(rows))  # type: ignore[no-untyped-call]
    chart = chart.properties(width=320, data=data)
    faceted = chart.facet(facet=by_panel, columns=min(columns, len(names)))
    if resolve:
        faceted = faceted.resolve_scale(**resolve)
    spec: dict[str, Any] = faceted.to_dict(validate=False)
    del spec["config"]  # the page's theme is the only one
    spec["params"] = [{"name": f"pick_{name}", "value": "all"} for name in FILTERS]
    spec["transform"] = [
        {
            "filter": f"pick_{name} == 'all' || !isValid(datum['{name}']) || "
            f"datum['{name}'] == pick_{name}"
        }
        for name in FILTERS
    ]
    spec["usermeta"] = {
        "least_px": least_px,
        "label_px": label_px,
        "num_panels": len(names),
    }
    return spec


def _tooltip(columns: Sequence[Column]) -> list[alt.Tooltip]:
    return [
        alt.Tooltip(field, type="quantitative", title=title, format=form)
        if form
        else alt.Tooltip(field, type="nominal", title=title)
        for field, title, form in columns
    ]


_SETTING: tuple[Column, ...] = (("policy", "policy", ""), ("strategy", "buckets", ""))
_AT: tuple[Column, ...] = (*_SETTING, ("load", "load", ""))
_OF_CLASS: tuple[Column, ...] = (*_AT, ("class", "class", ""))


def _by_setting(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> Any:
    """Returns a chart with a line for each setting, in its policy's colour."""
    settings = distinct([row["setting"] for row in rows])
    policies = distinct([row["policy"] for row in rows])
    return alt.Chart(height=alt.Step(19)).encode(
        y=alt.Y("setting:N", sort=settings, title=None),
        color=alt.Color("policy:N", sort=policies, legend=None),
        tooltip=_tooltip(columns),
    )


def _choice(rows: Sequence[Mapping[str, Any]]) -> Chart:
    columns = (
        *(*_AT, ("value", rows[0]["unit"], ",.2f"), ("interval", "95 % interval", "")),
        *(("standing", "standing", ""), ("num_requests", "requests", ",d")),
    )
    base = alt.Chart(height=alt.Step(42)).encode(
        x=alt.X(
            "load:N",
            sort=distinct([row["load"] for row in rows]),
            title=None,
            axis=alt.Axis(labelAngle=0),
            scale=alt.Scale(padding=0.03),
        ),
        y=alt.Y(
            "policy:N",
            sort=distinct([row["policy"] for row in rows]),
            title=None,
            scale=alt.Scale(padding=0.06),
        ),
        tooltip=_tooltip(columns),
    )
    is_best = "datum.standing == 'best'"
    cells_ = base.mark_rect(cornerRadius=3).encode(
        color=alt.Color("value:Q", title=rows[0]["unit"]).scale(scheme="blues"),
        stroke=alt.when(is_best).then(alt.value("#E69F00")).otherwise(alt.value(None)),
        strokeWidth=alt.value(4),
    )
    words = base.mark_text(lineBreak="\n", fontSize=11, dy=-7).encode(
        text="label:N",
        color=alt.when("datum.shade > 0.6")
        .then(alt.value("white"))
        .otherwise(alt.value("#1d1f23")),
    )
    return Chart(
        name="choice",
        title="What to choose at which load",
        caption="★ is the best at its load. ≈ cannot be told from it: the interval of "
        "the difference includes zero. Below each number is its 95 % interval.",
        columns=columns,
        rows=rows,
        spec=_finish(
            alt.layer(cells_, words),
            rows,
            facet="strategy",
            label="policy",
            least_px=170,
            columns=3,
        ),
    )


def _classes(rows: Sequence[Mapping[str, Any]]) -> Chart:
    columns = (
        *(*_OF_CLASS, ("percent", "attained, %", ".1f")),
        *(("low", "low", ".1f"), ("high", "high", ".1f")),
        ("num_requests", "requests", ",d"),
    )
    base = _by_setting(rows, columns)
    scale = alt.Scale(
        domain=[min(90, *(row["low"] for row in rows)) // 10 * 10, 100], zero=False
    )
    chart = alt.layer(
        base.mark_rule(strokeWidth=3, opacity=0.5).encode(
            x=alt.X("low:Q", scale=scale), x2="high:Q"
        ),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            x=alt.X("percent:Q", title="attained, %", scale=scale, axis=_FEW)
        ),
    )
    return Chart(
        name="classes",
        title="Attainment by class, and its objectives",
        caption="Requests that attained every objective of their class; the bars are "
        "95 % Wilson intervals. Where a bound depends on the request, ≈ stands before "
        "the typical one.",
        columns=columns,
        rows=rows,
        spec=_finish(chart, rows),
    )


def _latency(rows: Sequence[Mapping[str, Any]], name: str) -> Chart:
    columns = (
        *(*_OF_CLASS, ("p50", "p50, s", ",.3f"), ("p90", "p90, s", ",.3f")),
        *(("p99", "p99, s", ",.3f"), ("slo", "SLO", "")),
    )
    base = _by_setting(rows, columns)
    scale = alt.Scale(type="log", nice=False, padding=8)
    axis = alt.Axis(labelExpr=_DURATION, values=_LOG_TICKS, labelSeparation=8)
    chart = alt.layer(
        alt.Chart()
        .mark_rule(style="slo")
        .encode(x="slo_s:Q", tooltip=alt.Tooltip("slo:N", title="SLO"))
        .transform_filter("isValid(datum.slo_s)"),
        base.mark_rule(strokeWidth=2, opacity=0.8).encode(x="p50:Q", x2="p99:Q"),
        base.mark_rule(strokeWidth=7, opacity=0.8).encode(x="p50:Q", x2="p90:Q"),
        base.mark_point(filled=True, size=70, opacity=1).encode(
            x=alt.X("p50:Q", title=None, scale=scale, axis=axis)
        ),
    )
    return Chart(
        name=name,
        title=rows[0]["latency"],
        caption="Point: median; thick to p90, thin to p99; logarithmic. The dashed "
        "line is the class's SLO, where it has one.",
        columns=columns,
        rows=rows,
        spec=_finish(chart, rows, x="independent"),
    )


def _failures(rows: Sequence[Mapping[str, Any]]) -> Chart:
    columns = (
        *(*_OF_CLASS, ("cause", "cause", "")),
        *(("count", "requests", ",d"), ("percent", "% of all requests", ".1f")),
    )
    chart = (
        _by_setting(rows, columns)
        .mark_bar()
        .encode(
            x=alt.X("sum(percent):Q", title="% of requests", axis=_FEW),
            color=alt.Color("cause:N", title=None).scale(scheme="tableau10"),
            detail="class:N",
        )
    )
    return Chart(
        name="failures",
        title="Why requests failed or violated their SLO",
        caption="Each violation counts once, by the first objective that it violated, "
        "or by its failure.",
        columns=columns,
        rows=rows,
        spec=_finish(chart, rows),
    )


def _padding(rows: Sequence[Mapping[str, Any]]) -> Chart:
    columns = (*_AT, ("of", "of", ""), ("percent", "padding, %", ".1f"))
    chart = _by_setting(rows, columns).mark_bar()
    chart = chart.encode(x=alt.X("percent:Q", title="padding, %", axis=_FEW))
    return Chart(
        name="padding",
        title="Padding",
        caption="Share of the predicted step time, and of the computed token "
        "positions, that was padding.",
        columns=columns,
        rows=rows,
        spec=_finish(chart, rows),
    )


def _staircase(rows: Sequence[Mapping[str, Any]]) -> Chart:
    columns = (
        *(*_AT, ("program", "program", ""), ("tokens", "tokens computed", ",d")),
        *(("used_tokens", "real tokens, mean", ",.1f"), ("num_steps", "steps", ",d")),
        ("step_ms", "predicted, ms", ",.2f"),
    )
    edge: tuple[Column, ...] = (
        *(("strategy", "buckets of", ""), ("tokens", "tokens", ",d")),
        ("step_ms", "step, ms", ",.2f"),
    )
    ticks = alt.Axis(values=_LOG_TICKS, labelSeparation=8, format=",")
    base = alt.Chart(height=230).encode(
        x=alt.X("tokens:Q", title="tokens computed", axis=ticks).scale(
            type="log", nice=False, padding=8
        ),
        y=alt.Y("step_ms:Q", title="step, ms", axis=ticks).scale(
            type="log", nice=False, padding=8
        ),
    )
    policies = distinct([row["policy"] for row in rows if "policy" in row])
    chart = alt.layer(
        base.mark_line(style="curve", strokeWidth=1.5).transform_filter(
            "datum.kind == 'curve'"
        ),
        base.mark_point(filled=True, opacity=0.45)
        .encode(
            size=alt.Size("num_steps:Q", title="steps").scale(range=[8, 700]),
            color=alt.Color("policy:N", sort=policies, title="policy"),
            tooltip=_tooltip(columns),
        )
        .transform_filter("datum.kind == 'ran'"),
        base.mark_point(shape="triangle-up", filled=True, size=45, style="ink")
        .encode(tooltip=_tooltip(edge))
        .transform_filter("datum.kind == 'edge'"),
    )
    return Chart(
        name="staircase",
        title="The staircase: buckets, and where steps fell",
        caption="Line: the time of a step of as many tokens without padding, or of the "
        "buckets that were timed. Triangles: the edges that are compiled, with full "
        "decode rows. Circles: programs that ran, larger with more steps.",
        columns=columns,
        rows=rows,
        spec=_finish(chart, rows, facet="strategy", label=""),
    )


def _starts(rows: Sequence[Mapping[str, Any]]) -> Chart:
    columns = (
        *(("strategy", "buckets", ""), ("panel", "start", ""), ("stage", "stage", "")),
        ("until_s", "seconds from start", ",.2f"),
    )
    chart = (
        alt.Chart(height=alt.Step(26))
        .mark_bar()
        .encode(
            y=alt.Y(
                "strategy:N",
                sort=distinct([row["strategy"] for row in rows]),
                title=None,
            ),
            x=alt.X("since_s:Q", title="seconds from start", axis=_FEW),
            x2="until_s:Q",
            color=alt.Color(
                "stage:N", sort=distinct([row["stage"] for row in rows]), title=None
            ).legend(columns=1),
            tooltip=_tooltip(columns),
        )
    )
    return Chart(
        name="start-up",
        title="Start-up",
        caption="From the start until requests are served, and until no program is "
        "left to compile.",
        columns=columns,
        rows=rows,
        spec=_finish(chart, rows, label="strategy"),
    )


def _programs(rows: Sequence[Mapping[str, Any]]) -> Chart:
    columns = (
        *(
            ("strategy", "buckets", ""),
            ("program", "program", ""),
            ("part", "part", ""),
        ),
        *(("seconds", "seconds", ",.3f"), ("source", "came from", "")),
        ("mib", "MiB", ",.2f"),
    )
    chart = (
        alt.Chart(height=alt.Step(13))
        .mark_bar()
        .encode(
            y=alt.Y("program:N", sort=distinct([row["program"] for row in rows])),
            x=alt.X("seconds:Q", title="seconds"),
            color=alt.Color("part:N", sort=["trace", "compile", "load"], title=None),
            order="order:Q",
            tooltip=_tooltip(columns),
        )
    )
    return Chart(
        name="programs",
        title="Programs at the start",
        caption="Decode rows by prefill blocks, in the order in which they were made: "
        "tracing and lowering, then compiling or loading.",
        columns=columns,
        rows=rows,
        spec=_finish(chart, rows, facet="strategy", label="program", y="independent"),
    )


def charts(report: Mapping[str, Any]) -> list[Chart]:
    """Returns the charts for which a report has data, in reading order.

    Raises:
      ValueError: If the report cannot be read.
    """
    known = cells(report)
    times = report_rows.latencies(report, known)
    latencies = [
        ([row for row in times if row["latency"].startswith(name)], name)
        for name in ("TTFT", "TBT", "E2E")
    ]
    found = [(_choice, report_rows.choice(known))]
    if report_rows.judged_by(known)[0] != "throughput":
        found.append((_classes, report_rows.classes(report, known)))
    drawn = [draw(rows) for draw, rows in found if rows]
    drawn += [_latency(rows, name.lower()) for rows, name in latencies if rows]
    found = [
        (_failures, report_rows.failures(known)),
        (_padding, report_rows.padding(known)),
        (_staircase, report_rows.staircase(report, known)),
        (_starts, report_rows.starts(known)),
        (_programs, report_rows.programs(known)),
    ]
    return drawn + [draw(rows) for draw, rows in found if rows]


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
