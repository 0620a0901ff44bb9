"""The picture of a comparison: how many times as fast as each peer jserve is."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import vl_convert

# Okabe and Ito's palette, which colour-blind readers can distinguish too.
_COLOURS = {"vllm": "#0072B2", "llama.cpp": "#D55E00", "transformers": "#009E73"}
_LOG = alt.Scale(type="log", nice=False, padding=12)
_TICKS = [0.125, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 16]


def picture(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns a PNG of the ratios: a point for the median, a line for the range.

    It is narrow enough to be read on a telephone.
    """
    shown = [
        {"what": row["what"], "peer": row["system"], "ratio": row["ratio"]}
        | dict(zip(("low", "high"), row["ratio_range"], strict=True))
        for row in rows
        if "ratio" in row
    ]
    order = list(dict.fromkeys(row["what"] for row in shown))
    peers = [name for name in _COLOURS if any(row["peer"] == name for row in shown)]
    base = alt.Chart(alt.Data(values=shown)).encode(
        y=alt.Y("what:N", sort=order, title=None),
        yOffset=alt.YOffset("peer:N", sort=peers),
        color=alt.Color(
            "peer:N",
            scale=alt.Scale(domain=peers, range=[_COLOURS[name] for name in peers]),
            legend=alt.Legend(orient="top", title="jserve: times as fast as"),
        ),
    )
    ticks = alt.Axis(values=_TICKS, format="~g", labelOverlap="greedy")
    x = alt.X("ratio:Q", title=None, axis=ticks, scale=_LOG)
    even = alt.Chart(alt.Data(values=[{"ratio": 1}])).mark_rule(
        strokeDash=[4, 3], color="#1d1f23"
    )
    chart = (
        alt.layer(
            even.encode(x="ratio:Q"),
            base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q"),
            base.mark_point(filled=True, size=55, opacity=1).encode(x=x),
        )
        .properties(width=230, height=alt.Step(11))
        .configure(background="white", font="DejaVu Sans, sans-serif")
        .configure_axis(labelFontSize=12, labelLimit=200)
        .configure_legend(labelFontSize=12, titleFontSize=12)
    )
    png: bytes = vl_convert.vegalite_to_png(chart.to_dict(validate=False), scale=3)
    return png
