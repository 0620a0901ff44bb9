"""The four figures: goodput, overload, transient load, ablation.

The one idea: a policy has one colour everywhere, ours is solid, and what the paper
measured on its own machine is an open mark or a dashed line beside it.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
import paper

from jserve_tools.plots import style_axes

Entries = Sequence[Mapping[str, Any]]

# Okabe and Ito's palette: told apart by colour-blind readers too.
_COLOURS = {
    "edf": "#0072B2",
    "qoserve": "#D55E00",
    "sliding": "#009E73",
    "sliding, as published": "#CC79A7",
    "fcfs": "#999999",
    "sjf": "#56B4E9",
    "+ SlidingChunker": "#E69F00",
    "+ MLPS": "#56B4E9",
    "+ reserve, fill": "#F0E442",
}
_LINES = {"edf": "o", "qoserve": "s", "sliding": "D"}
_PAPER_MARKS = {paper.QWEN: "o", paper.LLAMA: "^"}
_DARK = "#222222"


def _figure(width: float, height: float) -> Any:
    return matplotlib.figure.Figure(
        figsize=(width, height), layout="constrained", dpi=110
    )


def _png(figure: Any) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _shapes(entries: Entries) -> list[str]:
    return list(dict.fromkeys(one["shape"] for one in entries))


def _spread(values: Sequence[float]) -> np.ndarray:
    """Returns the distances `[2, 1]` of the mean from the lowest and the highest."""
    mean = float(np.mean(values))
    return np.array([[mean - min(values)], [max(values) - mean]])


def draw_goodput(entries: Entries) -> bytes:
    """Returns bars of goodput in units of `edf`'s, the paper's ratios as marks."""
    shapes = _shapes(entries)
    figure = _figure(11, 3.9 * len(shapes))
    for place, shape in enumerate(shapes):
        axes = figure.add_subplot(len(shapes), 1, place + 1)
        own = [
            one for one in entries if one["shape"] == shape and one["row"] in _COLOURS
        ]
        by_case = {(one["row"], one["workload"]): one for one in own}
        rows = list(dict.fromkeys(one["row"] for one in own))
        workloads = list(dict.fromkeys(one["workload"] for one in own))
        width = 0.84 / len(rows)
        for index, row in enumerate(rows):
            shift = (index - (len(rows) - 1) / 2) * width
            for group, workload in enumerate(workloads):
                base = by_case["edf", workload]["qps"]
                one = by_case.get((row, workload))
                if one is None or base <= 0:
                    continue
                seeds = [seed["qps"] / base for seed in one["seeds"]]
                axes.bar(
                    group + shift,
                    one["qps"] / base,
                    width * 0.92,
                    color=_COLOURS[row],
                    label=row if group == 0 else None,
                    yerr=_spread(seeds),
                    ecolor=_DARK,
                    capsize=2,
                    error_kw={"linewidth": 0.8},
                )
                is_high = one["qps"] / base > 0.3  # else the number goes above it
                axes.annotate(
                    f"{one['qps']:.2f}",
                    (group + shift, 0.03 if is_high else max(seeds) + 0.05),
                    ha="center",
                    va="bottom",
                    fontsize=7,
                    rotation=90,
                    color="white" if is_high else _DARK,
                    fontweight="bold",
                )
                for model, mark in _PAPER_MARKS.items():
                    if row in paper.POLICIES and row != "edf":
                        axes.plot(
                            group + shift,
                            paper.goodput_ratio(workload, row, "edf", model),
                            mark,
                            markerfacecolor="white",
                            markeredgecolor=_DARK,
                            markersize=6,
                            label=f"paper, {model}"
                            if group == 0 and row == "sliding"
                            else None,
                        )
        axes.set_xticks(np.arange(len(workloads)), workloads)
        axes.axhline(1.0, color=_DARK, linewidth=0.8, linestyle=(0, (4, 2)))
        style_axes(
            axes,
            f"Goodput at 1 % violations, {shape} "
            "(on the bars: requests/s; whiskers: range over seeds)",
            "",
            "in units of edf's",
        )
        axes.grid(False, axis="x")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _png(figure)


def draw_overload(entries: Entries) -> bytes:
    """Returns violations over load, one panel for each workload and shape."""
    shapes = _shapes(entries)
    workloads = list(dict.fromkeys(one["workload"] for one in entries))
    figure = _figure(3.1 * max(len(workloads), 2), 3.3 * len(shapes))
    for place, shape in enumerate(shapes):
        for column, workload in enumerate(workloads):
            axes = figure.add_subplot(
                len(shapes), len(workloads), place * len(workloads) + column + 1
            )
            for policy in paper.POLICIES:
                own = [
                    one
                    for one in entries
                    if (one["shape"], one["workload"], one["row"])
                    == (shape, workload, policy)
                ]
                loads = [one["load"] for one in own]
                percent = np.array([one["percent"] for one in own])
                bounds = np.array([one["percent_ci95"] for one in own]).T
                axes.errorbar(
                    loads,
                    percent,
                    yerr=np.abs(bounds - percent),
                    color=_COLOURS[policy],
                    marker=_LINES[policy],
                    markersize=4,
                    linewidth=1.6,
                    elinewidth=0.8,
                    label=policy,
                )
                axes.plot(
                    loads,
                    [one["paper_percent"] for one in own],
                    color=_COLOURS[policy],
                    marker=_LINES[policy],
                    markerfacecolor="white",
                    markersize=4,
                    linestyle=(0, (3, 2)),
                    linewidth=1.0,
                    label=f"{policy}, paper",
                )
            axes.set_ylim(0, 102)
            style_axes(
                axes,
                f"{workload}, {shape}",
                "load, in sliding's goodputs",
                "violations, %" if column == 0 else "",
            )
            if place == 0 and column == 0:
                handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, fontsize=8, loc="outside lower center", ncols=len(labels)
    )
    return _png(figure)


def draw_transient(entries: Entries) -> bytes:
    """Returns violations so far over time; high load is shaded."""
    shapes = _shapes(entries)
    figure = _figure(6.2 * len(shapes), 4.2)
    for place, shape in enumerate(shapes):
        axes = figure.add_subplot(1, len(shapes), place + 1)
        own = [one for one in entries if one["shape"] == shape]
        num_bins = max(len(one["curve"]) for one in own)
        times_s = np.arange(num_bins + 1) * own[0]["bin_s"]
        for one in own:
            curve = [0.0, *one["curve"]]
            curve += [curve[-1]] * (num_bins + 1 - len(curve))
            axes.plot(
                times_s,
                curve,
                color=_COLOURS[one["row"]],
                linewidth=1.8,
                label=f"{one['row']}: {one['percent']:.1f} % "
                f"(paper {one['paper_percent']:.1f} %)",
            )
        period_s = own[0]["period_s"]
        duration_s = own[0]["duration_s"]
        for start_s in np.arange(period_s, duration_s, 2 * period_s):
            end_s = min(start_s + period_s, duration_s)
            axes.axvspan(start_s, end_s, color=_DARK, alpha=0.07, lw=0)
        axes.set_xlim(0, times_s[-1])
        axes.set_ylim(bottom=0)
        low, high = own[0]["levels_qps"]
        style_axes(
            axes,
            f"{own[0]['workload']}, {shape}: {low:.2f} and {high:.2f} requests/s",
            "seconds (shaded: high load)",
            "requests ended with a violation, mean over seeds",
        )
        axes.legend(fontsize=8, loc="upper left")
    return _png(figure)


def draw_ablation(entries: Entries) -> bytes:
    """Returns goodput in units of `edf`'s, and violations, as parts are added."""
    shapes = _shapes(entries)
    figure = _figure(12, 3.5 * len(shapes))
    for place, shape in enumerate(shapes):
        own = [one for one in entries if one["shape"] == shape]
        names = [one["row"] for one in own]
        base, published = own[0]["goodput_qps"], own[0]["paper_goodput_qps"]
        left = figure.add_subplot(len(shapes), 2, 2 * place + 1)
        right = figure.add_subplot(len(shapes), 2, 2 * place + 2)
        for index, one in enumerate(own):
            colour = _COLOURS[one["row"]]
            if base > 0:
                seeds = [qps / base for qps in one["goodput_seeds_qps"]]
                left.bar(
                    index,
                    one["goodput_qps"] / base,
                    0.7,
                    color=colour,
                    yerr=_spread(seeds),
                    ecolor=_DARK,
                    capsize=3,
                )
            bounds = np.array(one["percent_ci95"])[:, None]
            right.bar(
                index,
                one["percent"],
                0.7,
                color=colour,
                yerr=np.abs(bounds - one["percent"]),
                ecolor=_DARK,
                capsize=3,
            )
        style: dict[str, Any] = {
            "linestyle": "none",
            "marker": "o",
            "markersize": 8,
            "markerfacecolor": "white",
            "markeredgecolor": _DARK,
            "label": f"paper, {paper.QWEN}",
        }
        at = np.arange(len(own))
        papers = [one for one in own if "paper_percent" in one]
        left.plot(
            at[: len(papers)],
            [one["paper_goodput_qps"] / published for one in papers],
            **style,
        )
        right.plot(at[: len(papers)], [one["paper_percent"] for one in papers], **style)
        for axes, title, label in (
            (left, f"Goodput, {shape}", "in units of edf's"),
            (right, f"Violations at {own[0]['qps']:.2f} requests/s", "%"),
        ):
            axes.set_xticks(
                at, [name.replace(", ", ",\n") for name in names], fontsize=8
            )
            style_axes(axes, title, "", label)
            axes.grid(False, axis="x")
            axes.legend(fontsize=8, loc="upper left" if axes is left else "upper right")
        left.set_ylim(0, left.get_ylim()[1] * 1.15)
        right.set_ylim(0, 120)
        right.set_yticks(range(0, 101, 20))
    return _png(figure)


def draw_all(report: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns every figure that the report's stages allow, by its file name."""
    pictures = {}
    for stage, draw in (
        ("goodput", draw_goodput),
        ("overload", draw_overload),
        ("transient", draw_transient),
        ("ablation", draw_ablation),
    ):
        if report.get(stage):
            pictures[f"{stage}.png"] = draw(report[stage])
    return pictures
