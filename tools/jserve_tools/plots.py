"""One picture of a benchmark: latencies, kept promises, and what steps computed.

The one idea: a run has one colour in every panel, so the eye follows a policy
from its promises to its latencies to its steps.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np

from jserve.events import StepRecord
from jserve_sched.report import Outcome, token_gaps_s
from jserve_tools.tables import duration, run_name

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SLO_COLOUR = "#666666"
_SECONDS = "seconds, log scale (shaded: where 80 % of the bounds lie)"
_LEAST_S = 1e-4  # tokens read together are no time apart
_TIMELINE_STEPS = 400
_TICKS = (0, 32, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_GRID = {"color": "#DDDDDD", "linewidth": 0.6}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlottedRun:
    """A run's summary and the raw material behind it.

    Attributes:
      summary: its entry of the report.
      outcomes: its requests.
      steps: its engine steps, where they are known.
      block_tokens: tokens in one prefill block.
    """

    summary: Mapping[str, Any]
    outcomes: Sequence[Outcome]
    steps: Sequence[StepRecord] | None = None
    block_tokens: int | None = None


def _signed_root(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.sign(values) * np.sqrt(np.abs(values)))


def _signed_square(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.sign(values) * np.square(values))


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def style_axes(axes: Any, title: str, x_label: str, y_label: str) -> None:
    """Gives a panel the look that all pictures share."""
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(True, **_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _plot_cdfs(
    axes: Any, samples: Sequence[tuple[str, str, str, Sequence[float]]]
) -> None:
    for label, colour, line, values in samples:
        known = np.sort(np.maximum(np.asarray(values, np.float64), _LEAST_S))
        if not known.size:
            continue
        if known.size > 5000:
            known = np.quantile(known, np.linspace(0, 1, 5000))
        share = np.arange(1, known.size + 1) / known.size * 100
        axes.step(
            known, share, where="post", color=colour, ls=line, lw=1.6, label=label
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 101)


def _mark_bound(axes: Any, name: str, bounds: Sequence[float | None], row: int) -> None:
    known = [bound for bound in bounds if bound is not None]
    if not known:
        return
    middle = float(np.median(known))
    is_one = max(known) - min(known) < 1e-9
    low, high = axes.get_xlim()
    is_left = np.log(middle / low) < 0.6 * np.log(high / low)
    axes.axvline(middle, color=_SLO_COLOUR, ls=(0, (4, 2)), lw=1.0)
    if not is_one:
        low, high = np.percentile(known, (10, 90))
        axes.axvspan(low, high, color=_SLO_COLOUR, alpha=0.09, lw=0)
    text = f"{name}\n{'' if is_one else 'median '}{duration(middle)}"
    axes.annotate(
        text,
        (middle, 3 + 13 * row),
        xytext=(4 if is_left else -4, 0),
        textcoords="offset points",
        fontsize=7,
        color="#333333",
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
        ha="left" if is_left else "right",
        va="bottom",
    )


def _latency_panels(ttft_axes: Any, tbt_axes: Any, runs: Sequence[PlottedRun]) -> None:
    names = sorted({outcome.service_class for outcome in runs[0].outcomes})
    lines = dict(zip(names, ("-", "--", ":", "-."), strict=False))
    ttft = []
    tbt = []
    for index, run in enumerate(runs):
        for name in names:
            group = [one for one in run.outcomes if one.service_class == name]
            label = run_name(run.summary)
            if len(names) > 1:
                label += f", {name}"
            style = (label, _colour(index), lines.get(name, "-"))
            known = [one.ttft_s for one in group if one.ttft_s is not None]
            ttft.append((*style, known))
            tbt.append((*style, token_gaps_s(group)))
    _plot_cdfs(ttft_axes, ttft)
    _plot_cdfs(tbt_axes, tbt)
    for row, name in enumerate(names):
        slos = [one.slo for one in runs[0].outcomes if one.service_class == name]
        _mark_bound(ttft_axes, f"{name} SLO", [slo.ttft_s for slo in slos], row)
        _mark_bound(tbt_axes, f"{name} SLO", [slo.tbt_s for slo in slos], row)
    style_axes(ttft_axes, "Time to first token", _SECONDS, "requests, %")
    style_axes(tbt_axes, "Time between tokens", _SECONDS, "tokens, %")
    for axes in (ttft_axes, tbt_axes):
        axes.legend(
            fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2
        )


def _attainment_panel(axes: Any, runs: Sequence[PlottedRun]) -> None:
    names = sorted({name for run in runs for name in run.summary["by_class"]})
    groups = [*names, "all"] if len(names) > 1 else names
    width = 0.8 / len(runs)
    for index, run in enumerate(runs):
        entries = [
            run.summary if name == "all" else run.summary["by_class"].get(name)
            for name in groups
        ]
        at = np.arange(len(groups)) + (index - (len(runs) - 1) / 2) * width
        known = [
            (x, 100 * entry["attainment"], 100 * np.array(entry["attainment_ci95"]))
            for x, entry in zip(at, entries, strict=True)
            if entry is not None
        ]
        if not known:
            continue
        x, share, bounds = (np.array(values) for values in zip(*known, strict=True))
        spread = np.abs(bounds.T - share)
        axes.bar(
            x,
            share,
            width * 0.92,
            color=_colour(index),
            label=run_name(run.summary),
            yerr=spread,
            ecolor="#333333",
            capsize=3,
            error_kw={"linewidth": 1},
        )
        for left, height in zip(x, share, strict=True):
            axes.annotate(
                f"{height:.0f}",
                (left, 2),
                ha="center",
                va="bottom",
                fontsize=8,
                fontweight="bold",
                color="white" if height > 12 else "black",
            )
    axes.set_xticks(np.arange(len(groups)), groups)
    axes.set_ylim(0, 104)
    axes.set_yticks(range(0, 101, 20))
    style_axes(axes, "Requests that met every objective", "", "%, 95 % interval")
    axes.grid(False, axis="x")
    axes.legend(
        fontsize=7,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
        ncols=min(len(runs), 4),
    )


def _busiest(steps: Sequence[StepRecord]) -> int:
    """Returns where the stretch with the most tokens starts."""
    if len(steps) <= _TIMELINE_STEPS:
        return 0
    tokens = np.cumsum([0] + [step.used_rows + step.prefill_tokens for step in steps])
    return int(np.argmax(tokens[_TIMELINE_STEPS:] - tokens[:-_TIMELINE_STEPS]))


def _timeline_panel(
    axes: Any, run: PlottedRun, colour: str, x_label: str = "step"
) -> None:
    assert run.steps is not None and run.block_tokens is not None
    start = _busiest(run.steps)
    steps = run.steps[start : start + _TIMELINE_STEPS]
    ids = np.array([step.step_id - run.steps[0].step_id for step in steps])
    rows = np.array([step.used_rows for step in steps])
    chunks = np.array([step.prefill_tokens for step in steps])
    bucket = np.array(
        [step.num_rows + step.num_blocks * run.block_tokens for step in steps]
    )
    axes.fill_between(
        ids, bucket, step="mid", color="#DDDDDD", lw=0, label="bucket (padding)"
    )
    axes.fill_between(
        ids, rows + chunks, step="mid", color=colour, lw=0, label="prefill tokens"
    )
    axes.fill_between(
        ids, rows, step="mid", color="#222222", lw=0, label="decode tokens"
    )
    axes.step(ids, bucket, where="mid", color="#888888", lw=0.7)
    axes.set_xlim(ids[0] - 0.5, max(ids[-1], ids[0] + 1) + 0.5)
    # A root scale: a decode step of 32 rows shows beside a prefill of 1,000 tokens.
    axes.set_yscale("function", functions=(_signed_root, _signed_square))
    axes.set_ylim(0, bucket.max() * 1.5)
    axes.set_yticks([edge for edge in _TICKS if edge <= bucket.max() * 1.5])
    waste = run.summary.get("pad_share_tokens")
    title = f"Tokens of each step in its bucket: {run_name(run.summary)}"
    if waste is not None:
        title += f" ({waste * 100:.0f} % padding)"
    if len(run.steps) > len(steps):
        x_label += f" (the busiest {len(steps)} in a row of {len(run.steps)})"
    style_axes(axes, title, x_label, "tokens (root scale)")
    axes.legend(fontsize=7, loc="upper right", ncols=3, framealpha=0.9)


def draw(runs: Sequence[PlottedRun], *, title: str) -> bytes:
    """Returns the picture of some runs as a PNG.

    Args:
      runs: at least one.
      title: one line above everything.
    """
    timelines = [
        (index, run)
        for index, run in enumerate(runs)
        if run.steps and run.block_tokens is not None
    ][: len(COLOURS)]
    figure = matplotlib.figure.Figure(
        figsize=(13, 4.9 + 2.5 * len(timelines)), layout="constrained", dpi=110
    )
    grid = figure.add_gridspec(
        1 + len(timelines), 3, height_ratios=[4.2] + [2.5] * len(timelines)
    )
    figure.suptitle(title, fontsize=11)
    _latency_panels(
        figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1]), runs
    )
    _attainment_panel(figure.add_subplot(grid[0, 2]), runs)
    for place, (index, run) in enumerate(timelines, start=1):
        _timeline_panel(figure.add_subplot(grid[place, :]), run, _colour(index))
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
