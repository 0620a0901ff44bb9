"""The look that the figures of a report share: size, text, ticks, labels.

The one idea: figures are narrow, so that their text can be read when a phone shrinks
them to its width; what would crowd one panel gets panels below each other.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np

from jserve_tools.plots import style_axes

WIDTH_IN = 5.2
TEXT_POINTS = 9.5  # on a phone 390 px wide about as many pixels
INK = "#222222"
_TICKS = (0, 32, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_MOST_TICKS = 7
_WIDEST_LABEL = 16  # letters in a line


def figure_style() -> Any:
    """Returns the context in which figures are drawn and written.

    There is no mathematics in names, and text stays text: small, and selectable.
    """
    return matplotlib.rc_context(
        {
            "text.parse_math": False,
            "svg.fonttype": "none",
            "svg.hashsalt": "jserve",
            "font.family": "sans-serif",
            "font.size": TEXT_POINTS,
        }
    )


def one_line(name: str) -> str:
    """Returns a name from a report without what cannot be shown."""
    return "".join(
        "?" if unicodedata.category(letter).startswith("C") else letter
        for letter in name
    )


def wrapped(name: str, width: int = _WIDEST_LABEL) -> str:
    """Returns a name in lines of at most `width` letters, broken after signs."""
    lines = [""]
    for part in _parts(one_line(name), width):
        if len(lines[-1]) + len(part) <= width:
            lines[-1] += part
        else:
            lines.append(part)
    return "\n".join(line.strip() for line in lines if line)


def _parts(name: str, width: int) -> list[str]:
    """Returns what may not be broken, each with the sign that ends it."""
    parts = [""]
    for letter in name:
        if len(parts[-1]) == width:
            parts.append("")
        parts[-1] += letter
        if letter in ":,=@ ":
            parts.append("")
    return parts


def tick_width(num_ticks: int) -> int:
    """Returns how many letters fit below one of several ticks along x."""
    return max(int(50 / num_ticks), 6)


def panels(
    num_panels: int, height_in: float, *, extra_in: float = 0.4, sharex: bool = False
) -> tuple[matplotlib.figure.Figure, list[Any]]:
    """Returns a figure and its panels, one below the other."""
    figure = matplotlib.figure.Figure(
        figsize=(WIDTH_IN, num_panels * height_in + extra_in), layout="constrained"
    )
    axes = figure.subplots(num_panels, 1, squeeze=False, sharex=sharex)
    return figure, list(axes[:, 0])


def style(axes: Any, title: str, x_label: str, y_label: str) -> None:
    """Gives a panel the look of all pictures, in letters that a phone can show."""
    style_axes(axes, title, x_label, y_label)
    axes.title.set_fontsize(TEXT_POINTS + 1)
    axes.tick_params(labelsize=TEXT_POINTS)
    axes.xaxis.label.set_fontsize(TEXT_POINTS)
    axes.yaxis.label.set_fontsize(TEXT_POINTS)


def legend(figure: Any, handles: Sequence[Any], columns: int) -> None:
    """Puts a legend below all panels."""
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        fontsize=TEXT_POINTS,
        frameon=False,
        columnspacing=1.2,
    )


def scale_tokens(axes: Any, least: float, most: float) -> None:
    """Sets a root scale along x: small steps show beside a long prefill."""
    axes.set_xscale("function", functions=(_root, _square))
    axes.set_xlim(least, most)
    ticks = [tick for tick in _TICKS if least <= tick <= most]
    while len(ticks) > _MOST_TICKS:
        ticks = ticks[:1] + ticks[2:]  # the low ones stand closest
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])


def scale_percent(axes: Any, most: float) -> None:
    """Sets a root scale along y: rare steps show beside the many of one kind."""
    axes.set_yscale("function", functions=(_root, _square))
    axes.set_yticks([0, 5, 20, 50, 100])
    axes.set_ylim(0, most * 1.15)


def _root(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(np.maximum(values, 0.0)))


def _square(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.square(values))


def digits(value: float) -> str:
    """Returns three digits or so of a number."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.2g}"
