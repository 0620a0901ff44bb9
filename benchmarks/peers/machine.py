"""What a figure was measured on, and who else used the machine meanwhile.

The one idea: a shared machine makes timings lie, and the lie can be measured.
`CpuMeter` tells how many cores were busy with processes that are not ours.
"""

import dataclasses
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from typing import Any

_PROC = pathlib.Path("/proc")
_VERSION_PROBE = """
import importlib.metadata as m, json, platform
found = {"python": platform.python_version()}
for name in %r:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def describe_machine() -> dict[str, Any]:
    """Returns the CPU's name, the cores we may use and the memory, in bytes."""
    names = [
        line.partition(":")[2].strip()
        for line in _lines(_PROC / "cpuinfo")
        if line.startswith("model name")
    ]
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes,
        "system": platform.system(),
    }


def package_versions(python: pathlib.Path, packages: Sequence[str]) -> str:
    """Returns, as JSON, the versions of packages in another Python's environment."""
    return subprocess.run(
        [python, "-c", _VERSION_PROBE % (list(packages),)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def commit() -> str:
    """Returns the repository's commit, marked `-dirty` if files differ from it."""
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=pathlib.Path(__file__).parent,
        check=False,
        capture_output=True,
        text=True,
    )
    return answer.stdout.strip() or "unknown"


@dataclasses.dataclass(frozen=True)
class _Reading:
    time_s: float
    busy_s: float
    own_s: float


class CpuMeter:
    """Counts the cores that other processes keep busy (on Linux; elsewhere 0)."""

    def __init__(self, sessions: Iterable[int]):
        """Begins to count.

        Args:
          sessions: session ids of the processes that count as ours, beside this one.
        """
        self._sessions = frozenset(sessions)
        self._start = self._read()

    def other_cores(self) -> float:
        """Returns how many cores others used, on average, since it began."""
        now = self._read()
        span_s = max(now.time_s - self._start.time_s, 1e-6)
        used_s = (now.busy_s - self._start.busy_s) - (now.own_s - self._start.own_s)
        return max(used_s / span_s, 0.0)

    def _read(self) -> _Reading:
        own = os.times()
        own_s = own.user + own.system
        if self._sessions:
            own_s += sum(_session_cpu_s(self._sessions))
        return _Reading(time.monotonic(), _busy_s(), own_s)


def wait_until_quiet(
    max_other_cores: float, timeout_s: float, sessions: Iterable[int]
) -> float:
    """Waits until others use little CPU, or the time is up; returns what they use."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        meter = CpuMeter(sessions)
        time.sleep(1.0)
        other_cores = meter.other_cores()
        if other_cores <= max_other_cores or time.monotonic() >= deadline_s:
            return other_cores


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _busy_s() -> float:
    """Returns CPU seconds used by anyone since boot; time stolen by a host counts."""
    lines = _lines(_PROC / "stat")
    if not lines:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, lines[0].split()[1:9])
    busy = user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK")


def _session_cpu_s(sessions: frozenset[int]) -> Iterable[float]:
    for path in _PROC.glob("[0-9]*/stat"):
        lines = _lines(path)
        if not lines:
            continue
        # The name, in parentheses, may hold spaces: count from behind it.
        fields = lines[0].rpartition(")")[2].split()
        if int(fields[3]) in sessions:
            yield (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
