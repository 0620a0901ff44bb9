"""Configuration of a benchmark's load: a trace at some rates.

Invalid values, and settings without an effect, are refused when a config is made,
before any work.
"""

import dataclasses
import pathlib
from typing import Any

from jserve.config import check_range, check_readable
from jserve.flags import config_arguments
from jserve_tools.load.workload_trace import DEFAULT_TRACE


def refuse_idle(reason: str, config: Any, *prefixes: str) -> None:
    """Refuses settings that differ from their defaults but have no effect.

    Args:
      reason: Why they have no effect, for the message.
      prefixes: Beginnings of the names of these settings; without any, all are refused.

    Raises:
      ValueError: If there is such a setting.
    """
    idle = [
        one
        for one in config_arguments(config)
        if one.removeprefix("--").startswith(prefixes or "")
    ]
    if idle:
        raise ValueError(f"{reason}: leave out {', '.join(idle)}")


def check_ranges(config: Any, **limits: tuple[float, float]) -> None:
    """Checks fields that hold a number, several, or None against their limits.

    Raises:
      ValueError: If a number is outside, naming field, number and limits.
    """
    for name, (least, most) in limits.items():
        values = getattr(config, name)
        for value in values if isinstance(values, tuple) else (values,):
            if value is not None:
                check_range(name, value, least, most)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Replay of a trace, its arrival times scaled to one or several rates.

    Attributes:
      trace: CSV file with the columns arrival_s (seconds), prompt_tokens,
        output_tokens and, optionally, service_class, a name in --service_classes. Or a
        file of Azure's, BurstGPT's, Mooncake's or ShareGPT's, as published.
      length_scale: Factor on the trace's prompt and output lengths.
      load: Rates as shares of the measured capacity. [default: 0.9 without --qps]
      qps: Rates in requests per second.
      service_classes: JSON file with a list of classes. Each has a name, a share (0 to
        1) and any of ttft_s or ttft_slowdown, tbt_s or tbt_step_multiple, and ttlt_s:
        seconds, or multiples of an idle server's time. Classes that the trace names
        need no share. [default: a tight and a lax class]
      capacity_s: Seconds for which capacity is measured, once the server is full.
    """

    trace: pathlib.Path = DEFAULT_TRACE
    length_scale: float = 1.0
    load: tuple[float, ...] = ()
    qps: tuple[float, ...] = ()
    service_classes: pathlib.Path | None = None
    capacity_s: float = 10.0

    def __post_init__(self) -> None:
        check_readable("trace", self.trace)
        check_readable("service_classes", self.service_classes)
        check_ranges(
            self,
            length_scale=(1e-4, 1e4),
            capacity_s=(1.0, 3600.0),
            **dict.fromkeys(("load", "qps"), (1e-6, 1e6)),
        )
        if self.qps:
            refuse_idle("qps sets the rate", self, "load", "capacity_")

    @property
    def loads(self) -> tuple[float, ...]:
        """Rates as shares of the capacity; empty where rates need none."""
        return () if self.qps else self.load or (0.9,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """Requests that every server gets.

    Attributes:
      num_requests: Number of requests in a run, the first of the trace. 0 takes 200,
        or all of a shorter trace.
      seed: Seed of classes, prompts and sampling.
      replay: The trace and its rates.
    """

    num_requests: int = 0
    seed: int = 0
    replay: ReplayConfig = dataclasses.field(default_factory=ReplayConfig)

    def __post_init__(self) -> None:
        check_ranges(self, num_requests=(0, 2**24), seed=(0, 2**32 - 1))

    @property
    def num_runs(self) -> int:
        """Number of runs against each server."""
        return len(self.replay.loads) + len(self.replay.qps)
