"""One picture of a trained predictor: right where, wrong where, and how sure.

The one idea: all panels show steps that no model has seen. Above, each step's
prediction over its median, for the linear model and for the network; below, the
network's error in each program, and how often each quantile of it holds.

`N` is the number of held-out steps, `R` the rounds.
"""

import dataclasses
import io
from typing import Any

import matplotlib.figure
import numpy as np

from jserve_sched.features import NUM_BLOCKS, NUM_ROWS, SCENARIOS, scenarios
from jserve_tools.plots import style_axes

# Okabe and Ito's palette: told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73")
_GREY = "#666666"
_SHOWN_APE = 0.3  # the colour scale ends here


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """What is plotted.

    Attributes:
      matrix: features, `[N, F]`.
      duration_s: measurements, `[R, N]` seconds.
      linear_s: the linear model's predictions, `[N]`.
      mlp_s: the network's, `[N]`.
      upper_s: the network's 95th percentiles, `[N]`.
    """

    matrix: np.ndarray
    duration_s: np.ndarray
    linear_s: np.ndarray
    mlp_s: np.ndarray
    upper_s: np.ndarray

    @property
    def median_s(self) -> np.ndarray:
        """Medians over the rounds, `[N]` seconds."""
        return np.asarray(np.median(self.duration_s, axis=0))


def _scatter(axes: Any, steps: HeldOut, predicted_s: np.ndarray, name: str) -> None:
    scenario = scenarios(steps.matrix)
    median_ms = steps.median_s * 1e3
    for index, label in enumerate(SCENARIOS):
        chosen = scenario == index
        axes.scatter(
            median_ms[chosen],
            predicted_s[chosen] * 1e3,
            s=9,
            alpha=0.6,
            color=_COLOURS[index],
            label=label,
            linewidths=0,
        )
    everything = np.concatenate((steps.median_s, steps.linear_s, steps.mlp_s)) * 1e3
    ends = np.array([np.min(everything) * 0.8, np.max(everything) * 1.25])
    axes.plot(ends, ends, color=_GREY, lw=0.9)
    for factor in (0.8, 1.25):
        axes.plot(ends, ends * factor, color=_GREY, lw=0.6, ls=(0, (4, 3)))
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    error_ms = np.abs(predicted_s * 1e3 - median_ms)
    ape = np.median(error_ms / median_ms)
    title = f"{name}: MAE {error_ms.mean():.2f} ms, median error {ape:.1%}"
    style_axes(axes, title, "measured, median, ms", "predicted, ms")
    axes.legend(fontsize=8, loc="upper left", frameon=False)


def _programs_panel(figure: Any, axes: Any, steps: HeldOut) -> None:
    rows, blocks = steps.matrix[:, NUM_ROWS], steps.matrix[:, NUM_BLOCKS]
    row_edges, block_edges = np.unique(rows), np.unique(blocks)
    ape = np.abs(steps.mlp_s / steps.median_s - 1.0)
    grid = np.full((len(row_edges), len(block_edges)), np.nan)
    for i, row_edge in enumerate(row_edges):
        for j, block_edge in enumerate(block_edges):
            chosen = (rows == row_edge) & (blocks == block_edge)
            if chosen.any():
                grid[i, j] = np.median(ape[chosen])
                axes.text(
                    j,
                    i,
                    f"{grid[i, j]:.1%}\n{chosen.sum()}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if grid[i, j] > 0.6 * _SHOWN_APE else "black",
                )
    image = axes.imshow(
        grid, origin="lower", aspect="auto", cmap="Blues", vmin=0, vmax=_SHOWN_APE
    )
    axes.set_xticks(range(len(block_edges)), [f"{edge:g}" for edge in block_edges])
    axes.set_yticks(range(len(row_edges)), [f"{edge:g}" for edge in row_edges])
    style_axes(
        axes,
        "Network's median error in each program (and steps)",
        "prefill blocks",
        "decode rows",
    )
    figure.colorbar(image, ax=axes, format=lambda value, _: f"{value:.0%}", shrink=0.8)


def _calibration_panel(axes: Any, steps: HeldOut) -> None:
    """Shows how many measurements lie below each multiple of the step to the p95."""
    to_upper = np.maximum(np.log(steps.upper_s / steps.mlp_s), 1e-9)
    place = np.log(steps.duration_s / steps.mlp_s) / to_upper
    scenario = scenarios(steps.matrix)
    at = np.linspace(-2.0, 3.0, 251)
    for index, label in enumerate(SCENARIOS):
        chosen = np.sort(place[:, scenario == index], axis=None)
        if chosen.size:
            share = np.searchsorted(chosen, at, "right") / chosen.size
            axes.plot(at, share * 100, color=_COLOURS[index], lw=1.4, label=label)
    for x, wanted, name in ((0.0, 50, "p50"), (1.0, 95, "p95")):
        held = np.mean(place <= x) * 100
        axes.axvline(x, color=_GREY, lw=0.8, ls=(0, (4, 3)))
        axes.plot([x], [wanted], "x", color="black", ms=7)
        axes.annotate(
            f"{name}: {held:.1f} % below, {wanted} wanted",
            (x, 6 if x else 16),
            xytext=(5, 0),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xlim(at[0], at[-1])
    axes.set_ylim(0, 101)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    style_axes(
        axes,
        "Single measurements below the network's quantiles",
        "log time: 0 is the predicted median, 1 the predicted p95",
        "measurements, %",
    )
    axes.legend(fontsize=8, loc="upper left", frameon=False)


def draw_predictor(steps: HeldOut, *, title: str) -> bytes:
    """Returns the picture as a PNG.

    Args:
      steps: the held-out steps.
      title: one line above everything.
    """
    figure = matplotlib.figure.Figure(figsize=(12, 10), layout="constrained", dpi=100)
    figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(2, 2)
    _scatter(
        figure.add_subplot(grid[0, 0]), steps, steps.linear_s, "Linear model (x1 to x7)"
    )
    _scatter(figure.add_subplot(grid[0, 1]), steps, steps.mlp_s, "Network over it")
    _programs_panel(figure, figure.add_subplot(grid[1, 0]), steps)
    _calibration_panel(figure.add_subplot(grid[1, 1]), steps)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
