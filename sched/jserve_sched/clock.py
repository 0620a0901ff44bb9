"""Clocks: all of `jserve_sched` gets the time from its caller, or from a `Clock`."""

import dataclasses
import time
from typing import Protocol


class Clock(Protocol):
    """Source of the time, in seconds from an arbitrary, fixed origin."""

    def now_s(self) -> float:
        """Returns monotonic seconds."""


class WallClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        """Returns monotonic seconds."""
        return time.monotonic()


@dataclasses.dataclass
class ManualClock:
    """A clock that moves only by `advance`; for tests and simulation."""

    time_s: float = 0.0

    def now_s(self) -> float:
        """Returns the time last set, in seconds."""
        return self.time_s

    def advance(self, duration_s: float) -> None:
        """Moves forward by `duration_s`, 0 or more."""
        assert duration_s >= 0
        self.time_s += duration_s
