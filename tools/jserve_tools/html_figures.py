"""Draws the plots of a report: their data in, a figure out.

The one idea: each mark that stands for a number has an id, `mark-` and its place, so
that a test can hold the drawing against the data.
"""

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.figure
import numpy as np

from jserve_tools.html_panels import (
    INK,
    TEXT_POINTS,
    digits,
    figure_style,
    legend,
    one_line,
    panels,
    style,
    tick_width,
    wrapped,
)
from jserve_tools.html_plot import Plot
from jserve_tools.html_step_figures import (
    draw_programs,
    draw_staircase,
    draw_step_tokens,
)
from jserve_tools.plots import COLOURS

_PAD_COLOURS = {"bucket": "#0072B2", "block": "#56B4E9", "time": "#E69F00"}
_PAD_NAMES = {
    "bucket": "tokens: unused rows and blocks",
    "block": "tokens: ends of used blocks",
    "time": "time",
}
# Of starts: colour and name.
_STARTS = {
    "cold": (COLOURS[0], "empty cache"),
    "cached": (COLOURS[2], "cache full"),
    "other": (COLOURS[1], "start"),
}
_LEAST_PLACES = 3  # along x: one strategy's bars are not as wide as the panel
_MARKERS = "osD^vPX*"
_MAP_COLOURS = "Blues"


def draw(plot: Plot) -> matplotlib.figure.Figure:
    """Returns the figure of a plot."""
    with figure_style():
        return _DRAWINGS[plot.kind](plot.data)


def _draw_map(data: Mapping[str, Any]) -> matplotlib.figure.Figure:
    policies, strategies = data["policies"], data["strategies"]
    columns, rows = len(policies), len(strategies)
    figure, (axes,) = panels(1, 0.55 * rows, extra_in=0.8)
    values = np.full((rows, columns), np.nan)
    for cell in data["cells"]:
        place = strategies.index(cell["strategy"]), policies.index(cell["policy"])
        values[place] = cell["value"]
    low, high = np.nanmin(values), np.nanmax(values)
    # Ends of the colours are left out, and equal values are one middle colour.
    spread = max(high - low, 1e-9 * max(abs(high), 1.0))
    edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    axes.pcolormesh(
        *edges,
        np.ma.masked_invalid(values),
        cmap=_MAP_COLOURS,
        vmin=low - 0.15 * spread,
        vmax=high + 0.2 * spread,
        edgecolors="white",
        linewidth=2,
    )
    for index, cell in enumerate(data["cells"]):
        row, column = (
            strategies.index(cell["strategy"]),
            policies.index(cell["policy"]),
        )
        is_dark = (cell["value"] - low) / spread > 0.8
        text = digits(cell["value"])
        if cell["ci95"] is not None:
            text += "\n" + " to ".join(digits(end) for end in cell["ci95"])
        size = TEXT_POINTS - 0.5 if columns <= 4 else TEXT_POINTS - 2
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=size,
            color="white" if is_dark else INK,
            gid=f"mark-{index}",
        )
    style(axes, "", "", "")
    axes.set_xticks(
        range(columns), [wrapped(name, tick_width(columns)) for name in policies]
    )
    axes.set_yticks(range(rows), [wrapped(name) for name in strategies])
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(data["unit"], fontsize=TEXT_POINTS, loc="left")
    return figure


def _draw_classes(data: Mapping[str, Any]) -> matplotlib.figure.Figure:
    policies, strategies = data["policies"], data["strategies"]
    figure, places = panels(len(data["classes"]), 1.75, extra_in=0.6, sharex=True)
    offsets = (np.arange(len(strategies)) + 0.5) / len(strategies) * 0.8 - 0.4
    lowest = min(point["ci95"][0] for point in data["points"])
    handles: dict[str, Any] = {}
    for index, point in enumerate(data["points"]):
        axes = places[data["classes"].index(point["class"])]
        number = strategies.index(point["strategy"])
        x = policies.index(point["policy"]) + offsets[number]
        low, high = point["ci95"]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot([x, x], [low, high], color=colour, lw=2.2, alpha=0.55)
        (mark,) = axes.plot(
            x,
            point["percent"],
            _MARKERS[number % len(_MARKERS)],
            color=colour,
            ms=5,
            ls="",
            label=wrapped(point["strategy"]),
            gid=f"mark-{index}",
        )
        handles.setdefault(point["strategy"], mark)
    for axes, name in zip(places, data["classes"], strict=True):
        style(axes, wrapped(name), "", "requests, %")
        axes.set_ylim(lowest - 3, 103)
        axes.grid(False, axis="x")
        axes.set_xlim(-0.5, len(policies) - 0.5)
        for edge in range(1, len(policies)):
            axes.axvline(edge - 0.5, color="#EEEEEE", lw=1)
    width = tick_width(len(policies))
    places[-1].set_xticks(
        range(len(policies)), [wrapped(one, width) for one in policies]
    )
    legend(figure, list(handles.values()), min(len(handles), 3))
    return figure


def _draw_pads(data: Mapping[str, Any]) -> matplotlib.figure.Figure:
    policies, strategies = data["policies"], data["strategies"]
    figure, places = panels(len(policies), 1.45, extra_in=0.7, sharex=True)
    handles: dict[str, Any] = {}
    top = max(bar.get(key, 0.0) for bar in data["bars"] for key in ("tokens", "time"))
    for index, bar in enumerate(data["bars"]):
        axes = places[policies.index(bar["policy"])]
        x = strategies.index(bar["strategy"])
        parts = [(x - 0.2, 0.0, "bucket"), (x - 0.2, bar.get("bucket", 0.0), "block")]
        parts.append((x + 0.2, 0.0, "time"))
        for left, bottom, part in parts:
            if part not in bar:
                continue
            (mark,) = axes.bar(
                left,
                bar[part],
                0.36,
                bottom=bottom,
                color=_PAD_COLOURS[part],
            )
            mark.set_label(_PAD_NAMES[part])
            mark.set_gid(f"mark-{index}-{part}")
            handles.setdefault(part, mark)
        for left, key in ((x - 0.2, "tokens"), (x + 0.2, "time")):
            if key in bar:
                axes.text(
                    left,
                    bar[key] + 0.02 * top,
                    f"{bar[key]:.0f}" if bar[key] >= 9.5 else f"{bar[key]:.1f}",
                    ha="center",
                    va="bottom",
                    fontsize=TEXT_POINTS - 0.5,
                    color=INK,
                )
    for axes, policy in zip(places, policies, strict=True):
        style(axes, one_line(policy), "", "padding, %")
        axes.set_ylim(0, max(top * 1.22, 1.0))
        axes.grid(False, axis="x")
    width = tick_width(len(strategies))
    margin = 0.5 + max(0.0, (_LEAST_PLACES - len(strategies)) / 2)
    places[-1].set_xlim(-margin, len(strategies) - 1 + margin)
    places[-1].set_xticks(
        range(len(strategies)), [wrapped(one, width) for one in strategies]
    )
    legend(figure, list(handles.values()), 2)
    return figure


def _draw_start_up(data: Mapping[str, Any]) -> matplotlib.figure.Figure:
    bars = data["bars"]
    figure, (axes,) = panels(1, 0.75 * len(bars), extra_in=0.9)
    kinds = [
        one
        for one in _STARTS
        if any(f"{one}_warm_s" in bar or f"{one}_ready_s" in bar for bar in bars)
    ]
    most = max(value for bar in bars for key, value in bar.items() if key[-2:] == "_s")
    handles: dict[str, Any] = {}
    for index, bar in enumerate(bars):
        for place, start in enumerate(kinds):
            y = index + 0.8 * ((place + 0.5) / len(kinds) - 0.5)
            colour, name = _STARTS[start]
            for key, alpha in (("warm_s", 0.45), ("ready_s", 1.0)):
                value = bar.get(f"{start}_{key}")
                if value is None:
                    continue
                (mark,) = axes.barh(
                    y, value, 0.68 / len(kinds), color=colour, alpha=alpha, lw=0
                )
                mark.set_gid(f"mark-{index}-{start}-{key}")
                what = "all programs" if key == "warm_s" else "ready"
                mark.set_label(f"{name}: {what}")
                handles.setdefault(f"{start}_{key}", mark)
            ends = [bar.get(f"{start}_{key}", 0.0) for key in ("ready_s", "warm_s")]
            if max(ends) > 0:
                text = " / ".join(digits(end) for end in ends if end)
                axes.text(
                    max(ends) + 0.015 * most,
                    y,
                    f"{text} s",
                    va="center",
                    fontsize=TEXT_POINTS - 0.5,
                    color=INK,
                )
    style(axes, "", "seconds", "")
    ticks = [
        wrapped(bar["strategy"])
        + (f"\n{bar['num_programs']:.0f} programs" if "num_programs" in bar else "")
        for bar in bars
    ]
    axes.set_yticks(range(len(bars)), ticks)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, most * 1.25)
    axes.grid(False, axis="y")
    order = [f"{start}_{key}" for start in kinds for key in ("ready_s", "warm_s")]
    legend(figure, [handles[key] for key in order if key in handles], 2)
    return figure


_DRAWINGS: dict[str, Callable[[Mapping[str, Any]], matplotlib.figure.Figure]] = {
    "map": _draw_map,
    "classes": _draw_classes,
    "pads": _draw_pads,
    "start_up": _draw_start_up,
    "staircase": draw_staircase,
    "step_tokens": draw_step_tokens,
    "programs": draw_programs,
}
