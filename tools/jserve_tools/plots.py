"""A run with what its summary was made from, and the look of pictures of studies."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jserve.events import StepRecord
from jserve_sched.report import Outcome

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
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


def style_axes(axes: Any, title: str, x_label: str, y_label: str) -> None:
    """Gives a panel the look that all pictures share."""
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(True, **_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
