"""Turns trace rows into requests: token ids, a service class, an SLO.

Classes are drawn by (seed, row), and prompts by (seed, run, row): every policy gets the
same lengths, classes and SLOs, but no run finds the prompts of another run in a cache.
"""

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from jserve_sched.requests.service_class import ServiceClass, parse_service_classes
from jserve_sched.requests.slo import Slo
from jserve_sched.simulation.workload import Yardstick
from jserve_tools.load.config import LoadConfig
from jserve_tools.load.workload_trace import (
    TraceRow,
    mean_rate,
    read_trace,
    row_classes,
)
from jserve_tools.reporting.documents import known

_DEFAULT_ROWS = 200  # of a trace
# Every vocabulary has these ids, and in most none of them is a special token.
_PROMPT_TOKENS = range(4, 256)

# Chosen so that at nine tenths of capacity some requests of each class attain their SLO
# and some do not: a tight request can wait for one long prompt, a lax one for a queue.
DEFAULT_SERVICE_CLASSES = (
    ServiceClass(
        name="interactive", share=0.6, ttft_slowdown=15.0, tbt_step_multiple=25.0
    ),
    ServiceClass(name="batch", share=0.4, ttft_slowdown=200.0),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkloadRequest:
    """One request, ready to send.

    Attributes:
      request_id: Name that no other request of this process has.
      arrival_s: Time when it is due, seconds after the replay starts.
      prompt: `[n]` int32 token ids.
      max_tokens: Number of output tokens; end-of-sequence tokens are ignored.
    """

    request_id: str
    arrival_s: float = 0.0
    prompt: np.ndarray
    max_tokens: int
    service_class: str = "best_effort"
    slo: Slo = dataclasses.field(default_factory=Slo)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Trace rows, and how requests are made of them.

    Attributes:
      rows: Lengths and arrivals of the requests.
      config: Settings of the load, with the seed.
      classes: Service classes. Rows that name none get one at random, by shares, which
        must then add up to 1.
    """

    rows: Sequence[TraceRow]
    config: LoadConfig = dataclasses.field(default_factory=LoadConfig)
    classes: Sequence[ServiceClass] = DEFAULT_SERVICE_CLASSES

    def __post_init__(self) -> None:
        _ = self._row_classes  # refuses unknown classes

    @functools.cached_property
    def _row_classes(self) -> list[ServiceClass]:
        return row_classes(self.rows, self.classes, self.config.seed)

    def slo(self, row: int, yardstick: Yardstick | None) -> tuple[str, Slo]:
        """Returns the class name and the absolute objectives of a row."""
        one = self._row_classes[row]
        if yardstick is None:
            return one.name, one.resolve()
        isolated_s = yardstick.isolated_ttft_s(self.rows[row].prompt_tokens)
        return one.name, one.resolve(
            isolated_ttft_s=isolated_s, step_s=yardstick.step_s
        )

    def request(
        self, run: int, index: int, *, prompt_tokens: int, **fields: Any
    ) -> WorkloadRequest:
        """Returns a request of any length, by default with best effort and due at once.

        Its prompt is drawn by seed, run and index.
        """
        random = np.random.default_rng((self.config.seed, run, index))
        first, end = _PROMPT_TOKENS.start, _PROMPT_TOKENS.stop
        return WorkloadRequest(
            request_id=f"bench-{run}-{index}",
            prompt=random.integers(first, end, prompt_tokens, np.int32),
            **fields,
        )

    def requests(
        self, run: int, yardstick: Yardstick | None, *, qps: float
    ) -> list[WorkloadRequest]:
        """Returns every row as a request of run number `run`, at a mean rate.

        Args:
          yardstick: Idle times that relative objectives are multiples of; None if no
            objective is relative.
          qps: Mean rate, requests per second.

        Raises:
          ValueError: If the rows do not span any time.
        """
        time_factor = mean_rate(self.rows) / qps
        requests = []
        for index, row in enumerate(self.rows):
            name, slo = self.slo(index, yardstick)
            requests.append(
                self.request(
                    run,
                    index,
                    prompt_tokens=row.prompt_tokens,
                    max_tokens=row.output_tokens,
                    arrival_s=row.arrival_s * time_factor,
                    service_class=name,
                    slo=slo,
                )
            )
        return requests

    def describe(self) -> dict[str, Any]:
        """Returns the report's `workload`."""
        rows, config, replay = self.rows, self.config, self.config.replay
        found: dict[str, Any] = {
            "trace": replay.trace.name,
            "num_rows": len(rows),
            "seed": config.seed,
            "length_scale": replay.length_scale,
            "service_classes": [known(vars(one)) for one in self.classes],
        }
        for name in ("prompt_tokens", "output_tokens"):
            lengths = [getattr(row, name) for row in rows]
            found[f"{name}_mean"] = statistics.fmean(lengths)
            found[f"{name}_max"] = max(lengths)
        if rows[-1].arrival_s > rows[0].arrival_s:
            found["trace_qps"] = mean_rate(rows)
        return found


def read_workload(config: LoadConfig) -> Workload:
    """Reads the trace and the service classes of a benchmark.

    Raises:
      ValueError: If the trace or the service classes are invalid, naming the value.
      OSError: If a file cannot be read.
    """
    replay = config.replay
    classes: Sequence[ServiceClass] = DEFAULT_SERVICE_CLASSES
    if replay.service_classes is not None:
        classes = parse_service_classes(replay.service_classes.read_text())
    trace = read_trace(replay.trace, num_requests=config.num_requests, classes=classes)

    def scaled(tokens: int) -> int:
        return max(1, round(tokens * replay.length_scale))

    rows = [
        dataclasses.replace(
            row,
            prompt_tokens=scaled(row.prompt_tokens),
            output_tokens=scaled(row.output_tokens),
        )
        for row in trace[: config.num_requests or _DEFAULT_ROWS]
    ]
    return Workload(rows=rows, config=config, classes=classes)
