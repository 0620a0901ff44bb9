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
    check_shares,
    draw_class,
    promise,
    unit_arrivals,
)
from jserve_tools.workload_trace import TraceRow, mean_rate


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
      classes: drawn by share for each row.
      is_poisson: whether arrivals are drawn instead of the trace's.
    """

    rows: Sequence[TraceRow]
    classes: Sequence[ServiceClass]
    is_poisson: bool = False

    def __post_init__(self) -> None:
        check_shares(self.classes)

    def unit_arrivals(self, seed: int, yardstick: Yardstick) -> list[Arrival]:
        """Returns them at a mean of one request a second."""
        if self.is_poisson:
            gaps = np.random.default_rng(seed).exponential(1.0, len(self.rows))
            times_s = (np.cumsum(gaps) - gaps[0]).tolist()
        else:
            rate = mean_rate(list(self.rows))
            times_s = [row.arrival_s * rate for row in self.rows]
        return [
            promise(
                index,
                time_s,
                row.prompt_tokens,
                row.output_tokens,
                draw_class(self.classes, seed, index),
                yardstick,
            )
            for index, (row, time_s) in enumerate(zip(self.rows, times_s, strict=True))
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
