"""What a simulation serves: drawn lengths or a trace's, at one rate or at levels.

The one idea: requests are made at one a second, and the rate comes later, so that all
rates share their random numbers.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jserve_sched.slo import ServiceClass
from jserve_sched.workload import (
    Arrival,
    Component,
    Yardstick,
    promise,
    unit_arrivals,
)
from jserve_tools.workload_trace import TraceRow, mean_rate, row_classes


class Load(Protocol):
    """Requests, before a rate is known."""

    def unit_arrivals(self, seed: int, yardstick: Yardstick) -> list[Arrival]:
        """Returns them at a mean of one request a second."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedLoad:
    """Poisson arrivals of lengths that are drawn.

    Attributes:
      components: the kinds of request.
      num_requests: how many.
      classes: what is promised in place of the components' own; see
        `jserve_sched.workload.unit_arrivals`.
    """

    components: Sequence[Component]
    num_requests: int
    classes: Sequence[ServiceClass] = ()

    def unit_arrivals(self, seed: int, yardstick: Yardstick) -> list[Arrival]:
        """Returns them at a mean of one request a second."""
        return unit_arrivals(
            self.components,
            num_requests=self.num_requests,
            seed=seed,
            yardstick=yardstick,
            classes=self.classes,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceLoad:
    """A trace's lengths, in order, at its own times or Poisson ones.

    Attributes:
      rows: the trace.
      classes: the rows' own are among them; rows without get one by share.
      is_poisson: whether arrivals are drawn instead of the trace's.
    """

    rows: Sequence[TraceRow]
    classes: Sequence[ServiceClass]
    is_poisson: bool = False

    def __post_init__(self) -> None:
        row_classes(self.rows, self.classes, 0)  # a wrong one is refused now

    def unit_arrivals(self, seed: int, yardstick: Yardstick) -> list[Arrival]:
        """Returns them at a mean of one request a second."""
        if self.is_poisson:
            gaps = np.random.default_rng(seed).exponential(1.0, len(self.rows))
            times_s = (np.cumsum(gaps) - gaps[0]).tolist()
        else:
            # Rows that all come at once stay so.
            rate = mean_rate(list(self.rows)) if self.rows[-1].arrival_s else 1.0
            times_s = [row.arrival_s * rate for row in self.rows]
        classes = row_classes(self.rows, self.classes, seed)
        return [
            promise(index, time_s, row.prompt_tokens, row.output_tokens, one, yardstick)
            for index, (row, time_s, one) in enumerate(
                zip(self.rows, times_s, classes, strict=True)
            )
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
    """A rate that steps through levels, in turn (SlidingServe's Fig. 6).

    Attributes:
      levels_qps: the rates, requests per second.
      period_s: how long each lasts.
      duration_s: when arrivals end.
    """

    levels_qps: tuple[float, ...]
    period_s: float
    duration_s: float

    @property
    def mean_qps(self) -> float:
        """Mean of the levels, requests per second."""
        return statistics.fmean(self.levels_qps)
