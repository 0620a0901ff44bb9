"""The requests of a simulation: drawn from a workload, or those of a trace.

Requests are made at one a second and rescaled later, so that all rates share their
random numbers.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jserve_sched.requests.service_class import ServiceClass, parse_service_classes
from jserve_sched.simulation.mixes import WORKLOADS
from jserve_sched.simulation.workload import (
    Arrival,
    Yardstick,
    request_arrival,
    unit_arrivals,
)
from jserve_tools.load.workload import DEFAULT_SERVICE_CLASSES
from jserve_tools.load.workload_trace import (
    TraceRow,
    mean_rate,
    read_trace,
    row_classes,
)
from jserve_tools.simulating.config import LoadConfig

_DEFAULT_REQUESTS = 1000  # of a workload


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulatedLoad:
    """Requests of a simulation, and their rates.

    Attributes:
      config: Settings of the load.
      classes: Service classes that a trace's rows name or get by share, or that replace
        those of a workload; see `unit_arrivals`.
      rows: Rows of the trace; empty for a workload.
    """

    config: LoadConfig
    classes: Sequence[ServiceClass] = ()
    rows: Sequence[TraceRow] = ()

    def __post_init__(self) -> None:
        if self.rows:  # refuses unknown classes, and a trace without a rate
            row_classes(self.rows, self.classes, 0)
            if not self.config.poisson and not self.config.one_shot:
                mean_rate(list(self.rows))

    @property
    def workload(self) -> str:
        """Name of the workload."""
        return self.config.workload or "mixed_v1"

    @property
    def qps(self) -> Sequence[float]:
        """Rates to run at; infinite if all requests are due at once."""
        config = self.config
        if config.one_shot:
            return [math.inf]
        return config.qps or [mean_rate(list(self.rows)) if self.rows else 1.0]

    def unit_arrivals(self, seed: int, yardstick: Yardstick) -> list[Arrival]:
        """Returns the requests that a seed draws, at a mean of one a second."""
        if not self.rows:
            return unit_arrivals(
                WORKLOADS[self.workload],
                num_requests=self.config.num_requests or _DEFAULT_REQUESTS,
                seed=seed,
                yardstick=yardstick,
                classes=self.classes,
            )
        if self.config.poisson:
            gaps = np.random.default_rng(seed).exponential(1.0, len(self.rows))
            times_s = (np.cumsum(gaps) - gaps[0]).tolist()
        else:
            # Rows that all have one arrival time keep it.
            rate = mean_rate(list(self.rows)) if self.rows[-1].arrival_s else 1.0
            times_s = [row.arrival_s * rate for row in self.rows]
        classes = row_classes(self.rows, self.classes, seed)
        return [
            dataclasses.replace(
                request_arrival(
                    index, time_s, row.prompt_tokens, row.output_tokens, one, yardstick
                ),
                block_ids=row.block_ids,
            )
            for index, (row, time_s, one) in enumerate(
                zip(self.rows, times_s, classes, strict=True)
            )
        ]


def read_load(config: LoadConfig) -> SimulatedLoad:
    """Returns the load that a config describes.

    Raises:
      ValueError: If a file is invalid, naming the value and the limit.
      OSError: If a file cannot be read.
    """
    classes: Sequence[ServiceClass] = ()
    if config.service_classes is not None:
        classes = parse_service_classes(config.service_classes.read_text())
    if config.trace is None:
        return SimulatedLoad(config=config, classes=classes)
    classes = classes or DEFAULT_SERVICE_CLASSES
    rows = read_trace(
        config.trace, num_requests=config.num_requests or 0, classes=classes
    )
    return SimulatedLoad(config=config, classes=classes, rows=rows)
