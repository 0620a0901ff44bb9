"""Notices an engine that makes no progress."""

import logging
import math
import time
from collections.abc import Callable

_LOG = logging.getLogger("jserve")
_TIMES_PREDICTED = 100.0  # that a step may take, at least
_PAUSE_S = 5.0  # between two checks: the whole process was stopped


class Watchdog:
    """Fails an engine whose thread has been busy with one step for far too long."""

    def __init__(self, least_s: float, fail: Callable[[str], None]):
        """Makes one that calls `fail` no sooner than after `least_s`; 0 is never."""
        self._least_s = least_s
        self._fail = fail
        self._busy: tuple[float, float] | None = None  # since when; as predicted
        self._checked_s = math.inf

    def begin(self, predicted_s: float = 0.0) -> None:
        """Begins to wait for progress, of a step that was predicted to take so long."""
        self._busy = time.monotonic(), predicted_s

    def rest(self) -> None:
        """Expects no progress: there is nothing to do, or a compiler runs."""
        self._busy = None

    def check(self) -> None:
        """Calls `fail` if the time is over; has to be called all the time."""
        now_s = time.monotonic()
        paused_s, self._checked_s = now_s - self._checked_s, now_s
        busy = self._busy
        if busy is not None and paused_s > _PAUSE_S:
            busy = self._busy = now_s, busy[1]
        if busy is None or not self._least_s:
            return
        limit_s = max(self._least_s, _TIMES_PREDICTED * busy[1])
        if now_s - busy[0] > limit_s:
            self._busy = None
            _LOG.error("no step ended in %g s (--step_timeout_s)", limit_s)
            self._fail(f"the engine ended no step in {limit_s:g} s")
