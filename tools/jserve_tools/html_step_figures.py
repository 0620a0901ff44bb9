"""Figures of what steps computed: stairs, histograms, programs.

The one idea: what is real stands in front of the bucket that it was rounded up to.
"""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib.figure
import matplotlib.patches
import numpy as np

from jserve_tools.html_panels import (
    INK,
    TEXT_POINTS,
    WIDTH_IN,
    one_line,
    panels,
    scale_percent,
    scale_tokens,
    style,
)
from jserve_tools.plots import COLOURS

_TALLEST_IN = 1.7  # a grid of programs, however many rows it has


def draw_staircase(data: Mapping[str, Any]) -> matplotlib.figure.Figure:
    """Draws step times, one panel of stairs for each bucket table."""
    tokens = np.asarray(data["tokens"], np.float64)
    curve_ms = 1e3 * np.asarray(data["seconds"], np.float64)
    figure, places = panels(len(data["tables"]), 1.5, sharex=True)
    for index, (axes, table) in enumerate(zip(places, data["tables"], strict=True)):
        edges = np.asarray(table["edges_tokens"], np.float64)
        edges_ms = 1e3 * np.asarray(table["edges_s"], np.float64)
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(tokens, curve_ms, color=INK, lw=1.3)
        if not data["is_discrete"]:  # or the edge above is not known to be drawn
            inside = tokens[tokens <= edges[-1]]
            at = np.union1d(inside, np.concatenate([edges, edges[:-1] + 1e-6]))
            stairs = edges_ms[np.searchsorted(edges, at)]
            under = np.interp(at, tokens, curve_ms)
            axes.fill_between(at, under, stairs, color=colour, alpha=0.3, lw=0)
            axes.plot(at, stairs, color=colour, lw=1.5)
        axes.plot(
            edges, edges_ms, "o", color=colour, ms=3.5, ls="", gid=f"mark-{index}"
        )
        title = one_line(table["label"]) + f": {table['num_edges']} edges"
        if table["num_programs"] is not None:
            title += f", {table['num_programs']} programs"
        style(axes, title, "", "step, ms")
        scale_tokens(axes, float(tokens[0]), float(tokens[-1]))
        axes.set_ylim(0, float(np.max(curve_ms)) * 1.08)
    places[-1].set_xlabel(
        "tokens in the step, decode rows included (root scale)", fontsize=TEXT_POINTS
    )
    return figure


def draw_step_tokens(data: Mapping[str, Any]) -> matplotlib.figure.Figure:
    """Draws a histogram of tokens a step, with bucket edges, for each strategy."""
    figure, places = panels(len(data["panels"]), 1.4, sharex=True)
    most = max(
        high for panel in data["panels"] for _, high, count in panel["bins"] if count
    )
    for axes, panel in zip(places, data["panels"], strict=True):
        number = places.index(axes)
        counts = np.array([count for _, _, count in panel["bins"]], np.float64)
        shares = 100 * counts / counts.sum()
        for edge in panel["edges_tokens"]:
            axes.axvline(edge, color="#888888", lw=0.9, zorder=0.9)
        for index, ((low, high, count), share) in enumerate(
            zip(panel["bins"], shares, strict=True)
        ):
            if count:
                (mark,) = axes.bar(
                    low,
                    share,
                    high - low,
                    align="edge",
                    color=COLOURS[number % len(COLOURS)],
                    lw=0,
                )
                mark.set_gid(f"mark-{number}-{index}")
        style(axes, one_line(panel["label"]), "", "steps, %")
        axes.grid(False)
        scale_percent(axes, float(np.max(shares)))
        scale_tokens(axes, 0, most)
    places[-1].set_xlabel("real tokens in the step (root scales)", fontsize=TEXT_POINTS)
    return figure


def draw_programs(data: Mapping[str, Any]) -> matplotlib.figure.Figure:
    """Draws how often each program ran, one grid for each strategy."""
    heights = [
        0.75 + min(0.17 * len(panel["row_edges"]), _TALLEST_IN)
        for panel in data["panels"]
    ]
    figure = matplotlib.figure.Figure(
        figsize=(WIDTH_IN, sum(heights) + 0.3), layout="constrained"
    )
    grid = figure.subplots(
        len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    for number, (axes, panel) in enumerate(zip(grid, data["panels"], strict=True)):
        rows, blocks = panel["row_edges"], panel["block_edges"]
        for index, one in enumerate(panel["programs"]):
            if not one["num_steps"]:
                continue
            # 0.01 % of the steps is nearly white, all of them is the full colour.
            depth = min(max(1 + math.log10(one["percent"] / 100) / 4, 0.05), 1.0)
            mark = matplotlib.patches.Rectangle(
                (
                    blocks.index(one["num_blocks"]) - 0.5,
                    rows.index(one["num_rows"]) - 0.5,
                ),
                1,
                1,
                color=COLOURS[number % len(COLOURS)],
                alpha=depth,
                lw=0,
            )
            mark.set_gid(f"mark-{number}-{index}")
            axes.add_patch(mark)
        style(axes, one_line(panel["label"]), "", "rows")
        axes.set_xlim(-0.5, len(blocks) - 0.5)
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.grid(False)
        stride = math.ceil(len(blocks) / 12)
        places = range(0, len(blocks), stride)
        axes.set_xticks(places, [str(blocks[place]) for place in places])
        stride = math.ceil(len(rows) / 8)
        places = range(len(rows) - 1, -1, -stride)
        axes.set_yticks(places, [str(rows[place]) for place in places])
        axes.spines[["top", "right"]].set_visible(True)
    grid[-1].set_xlabel("prefill blocks", fontsize=TEXT_POINTS)
    return figure
