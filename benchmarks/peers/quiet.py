"""Measures how many cores other processes keep busy (on Linux; elsewhere 0).

On a shared machine these disturb timings.
"""

import os
import pathlib
import time
from collections.abc import Collection

_PROC = pathlib.Path("/proc")


class CpuMeter:
    """Measures the cores that other processes use, from its creation on."""

    def __init__(self, sessions: Collection[int]):
        """Begins to measure.

        Args:
          sessions: Ids of the sessions whose processes do not count as others.
        """
        self._sessions = frozenset(sessions)
        self._start = self._read()

    def other_cores(self) -> float:
        """Returns the mean number of cores that other processes used."""
        time_s, busy_s, own_s = (
            now - start for now, start in zip(self._read(), self._start, strict=True)
        )
        return max((busy_s - own_s) / max(time_s, 1e-6), 0.0)

    def _read(self) -> tuple[float, float, float]:
        """Returns the time, all CPU seconds since boot, and those not of others."""
        if not (_PROC / "stat").exists():
            return time.monotonic(), 0.0, 0.0
        tick = os.sysconf("SC_CLK_TCK")
        first = (_PROC / "stat").read_text().splitlines()[0]
        user, nice, system, _, _, irq, softirq, steal = map(int, first.split()[1:9])
        own_ticks = 0
        for path in _PROC.glob("[0-9]*/stat"):
            try:
                # The name, in parentheses, may hold spaces: fields count after it.
                fields = path.read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            if int(fields[3]) in self._sessions:
                own_ticks += int(fields[11]) + int(fields[12])
        own = os.times()  # also of child processes that have ended, such as a client
        busy_ticks = user + nice + system + irq + softirq + steal
        return (
            time.monotonic(),
            busy_ticks / tick,
            own_ticks / tick + sum(own[:4]),
        )


def wait_until_quiet(
    most_cores: float, timeout_s: float, sessions: Collection[int]
) -> None:
    """Waits until others use at most `most_cores` cores, or the time is up."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        meter = CpuMeter(sessions)
        time.sleep(1.0)
        if meter.other_cores() <= most_cores:
            return
