"""Clocks: all of `jserve_sched` gets the time from its caller, or from a `Clock`."""

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
