"""One picture of a request latency: predicted over measured, for each of its parts.

The one idea: a panel shows what a part was fitted to and what it was judged on, so that
an error of the form is told from one of too few points.
"""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import numpy as np

from jserve_sched.request_grid import LatencyPoints
from jserve_sched.request_latency import Bilinear
from jserve_tools.plots import COLOURS, style_axes

_GREY = "#666666"
_NEAR = (0.8, 1.25)  # dashed: a quarter too long, or as much too short


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedPart:
    """One part of a request latency, and what it is compared with.

    Attributes:
      name: what a table and a picture call it.
      source: where the points of the fit are from, in a word.
      model: the part.
      learned: the points it was fitted to.
      held_out: measured points that it was not fitted to.
    """

    name: str
    source: str
    model: Bilinear
    learned: LatencyPoints
    held_out: LatencyPoints


def _panel(axes: Any, part: JudgedPart) -> None:
    shown = (
        (part.learned, f"fitted to ({part.source})", COLOURS[5], "o", 12),
        (part.held_out, "held out (measured)", COLOURS[1], "x", 22),
    )
    everything: list[np.ndarray] = []
    for points, label, colour, marker, size in shown:
        predicted_s = part.model.of(points.batch, points.length)
        everything += [points.duration_s, predicted_s]
        axes.scatter(
            points.duration_s * 1e3,
            predicted_s * 1e3,
            s=size,
            color=colour,
            marker=marker,
            linewidths=1.0,
            label=f"{label}: {len(points.batch)}",
        )
    values_ms = np.concatenate(everything) * 1e3
    ends = np.array([np.min(values_ms) * 0.8, np.max(values_ms) * 1.25])
    axes.plot(ends, ends, color=_GREY, lw=0.9)
    for factor in _NEAR:
        axes.plot(ends, ends * factor, color=_GREY, lw=0.6, ls=(0, (4, 3)))
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    style_axes(axes, part.name, "measured or priced, ms", "bilinear fit, ms")
    axes.legend(fontsize=8, loc="upper left", frameon=False)


def draw_requests(parts: Sequence[JudgedPart], *, title: str) -> bytes:
    """Returns the picture as a PNG, a panel for each part.

    Args:
      parts: at least one.
      title: one line above everything.
    """
    figure = matplotlib.figure.Figure(
        figsize=(6 * len(parts), 5.4), layout="constrained", dpi=100
    )
    figure.suptitle(title, fontsize=11)
    for index, part in enumerate(parts):
        _panel(figure.add_subplot(1, len(parts), index + 1), part)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
