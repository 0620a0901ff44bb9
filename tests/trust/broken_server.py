"""Runs `jserve` with a fault at one point, from when a file appears.

python -m tests.trust.broken_server POINT FILE [flags of jserve]
"""

import functools
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jserve import cli
from jserve.engine.engine import Engine, PendingStep
from jserve.engine.recent_steps import RecentSteps
from jserve.server.generation import Generation
from jserve.server.metrics import ServerMetrics
from jserve.server.replies import TokenRouter
from jserve_sched.scheduler import Scheduler

SLOW_S = 1.0


def _raise(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def _hang() -> None:
    time.sleep(3600)


# For each point: the method, what it does instead, and how often.
POINTS: dict[str, tuple[type, str, Callable[[], Any], int]] = {
    "plan": (Scheduler, "plan", _raise(RuntimeError("no plan")), 1),
    "launch": (Engine, "launch", _raise(RuntimeError("no device")), 1),
    "wait": (PendingStep, "wait", _raise(RuntimeError("device lost")), 1),
    "memory": (Engine, "launch", _raise(MemoryError()), 1),
    "apply": (Scheduler, "apply", _raise(KeyError("row")), 1),
    "hang": (PendingStep, "wait", _hang, 1),
    "plan that hangs": (Scheduler, "plan", _hang, 1),
    "slow step": (PendingStep, "wait", lambda: time.sleep(SLOW_S), 1),
    "delivery": (TokenRouter, "publish", _raise(RuntimeError("not now")), 1),
    "one answer": (Generation, "take", _raise(ValueError("a text")), 1),
    "record": (RecentSteps, "_price_new", _raise(ValueError("no price")), 10**9),
    "metrics": (ServerMetrics, "absorb_steps", _raise(ValueError("count")), 10**9),
    "garbage": (PendingStep, "wait", lambda: 10**6, 1),
}


def inject(point: str, file: pathlib.Path) -> None:
    """Puts the fault in the place of a method, once `file` exists."""
    owner, name, fault, left = POINTS[point]
    method = getattr(owner, name)

    @functools.wraps(method)
    def broken(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        if not left or not file.exists():
            return method(*arguments, **options)
        left -= 1
        if (token := fault()) is not None:
            step = arguments[0]
            step._out = (np.full_like(step._out[0], token), *step._out[1:])
        return method(*arguments, **options)

    setattr(owner, name, broken)


if __name__ == "__main__":
    inject(sys.argv[1], pathlib.Path(sys.argv[2]))
    del sys.argv[1:3]
    cli.run()
