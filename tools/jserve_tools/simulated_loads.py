"""What a simulation serves: drawn lengths or a trace's, at one rate or at levels.

Requests are made at one a second, and the rate comes later, so that all rates share
their random numbers.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jserve_sched.slo import ServiceClass, parse_service_classes
from jserve_sched.workload import (
    WORKLOADS,
    Arrival,
    Component,
    Yardstick,
    at_levels,
    at_rate,
    promise,
    unit_arrivals,
)
from jserve_tools.simulate_config import LoadConfig
from jserve_tools.workload import DEFAULT_SERVICE_CLASSES
from jserve_tools.workload_trace import TraceRow, mean_rate, read_trace, row_classes

_DEFAULT_WORKLOAD = "mixed_v1"
_DEFAULT_REQUESTS = 1000  # of a workload


class Load(Protocol):
    """Requests, before a rate is known."""

    def unit_arrivals(self, seed: int, yardstick: Yardstick) -> list[Arrival]:
        """Returns them at a mean of one request a second."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedLoad:
    """Poisson arrivals of lengths that are drawn.

    Attributes:
      components: Kinds of request.
      num_requests: Number of requests.
      classes: Classes in place of the components' own; see
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
      rows: The trace.
      classes: Classes that the rows name; rows that name none get one by share.
      is_poisson: Whether arrivals are drawn instead of the trace's.
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
      levels_qps: Rates, requests per second.
      period_s: Time that each lasts, seconds.
      duration_s: Time when arrivals end, seconds.
    """

    levels_qps: tuple[float, ...]
    period_s: float = 120.0
    duration_s: float = 1200.0

    @property
    def mean_qps(self) -> float:
        """Mean of the levels, requests per second."""
        return statistics.fmean(self.levels_qps)


def arrivals_at(
    units: Sequence[Arrival], qps: float, levels: Levels | None
) -> list[Arrival]:
    """Returns unit-rate arrivals at a rate, or under levels, whatever the rate is."""
    if levels is None:
        return at_rate(units, qps)
    return at_levels(
        units, levels.levels_qps, period_s=levels.period_s, duration_s=levels.duration_s
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatedLoad:
    """Requests, and how fast they come.

    Attributes:
      requests: The requests.
      qps: Rates to run at; under levels their mean; infinite if all come at once.
      levels: Rates that take turns, if they do.
      trace: Name of the trace; "" for a workload.
      workload: Name of the workload; "" for a trace.
    """

    requests: Load
    qps: Sequence[float]
    levels: Levels | None
    trace: str = ""
    workload: str = ""


def read_load(config: LoadConfig) -> RatedLoad:
    """Returns the load that a config describes.

    Raises:
      ValueError: if a file is invalid, naming the value and the limit.
      OSError: if a file cannot be read.
    """
    classes: Sequence[ServiceClass] = ()
    if config.service_classes is not None:
        classes = parse_service_classes(config.service_classes.read_text())
    qps: Sequence[float] = [math.inf] if config.one_shot else config.qps
    levels = None
    if config.levels_qps:
        times_s = {"period_s": config.period_s, "duration_s": config.duration_s}
        given = {name: value for name, value in times_s.items() if value is not None}
        levels = Levels(levels_qps=config.levels_qps, **given)
        qps = [levels.mean_qps]
    if config.trace is not None:
        classes = classes or DEFAULT_SERVICE_CLASSES
        rows = read_trace(
            config.trace, num_requests=config.num_requests or 0, classes=classes
        )
        if not config.poisson and not config.one_shot:
            mean_rate(rows)  # a trace without a rate is refused
        return RatedLoad(
            requests=TraceLoad(rows=rows, classes=classes, is_poisson=config.poisson),
            qps=qps or [mean_rate(rows)],
            levels=levels,
            trace=config.trace.name,
        )
    count = config.num_requests or _DEFAULT_REQUESTS
    if levels is not None and config.num_requests is None:
        most = max(levels.levels_qps) * levels.duration_s
        count = int(most + 5 * most**0.5) + 10
    workload = config.workload or _DEFAULT_WORKLOAD
    components = WORKLOADS[workload]
    return RatedLoad(
        requests=NamedLoad(components=components, num_requests=count, classes=classes),
        qps=qps or [1.0],
        levels=levels,
        workload=workload,
    )
