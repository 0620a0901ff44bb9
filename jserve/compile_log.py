"""Counts what the compiler does: a compilation while serving is a bug.

JAX reports each real compilation, and each hit of its persistent cache, to
listeners. Listeners cannot be taken away again, so the process has one log.
"""

import dataclasses
import threading
from typing import Any

import jax

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass
class CompileLog:
    """Totals since the process began to listen.

    Attributes:
      num_compiles: programs made executable, cached ones included.
      num_cache_hits: of those, found in the persistent cache.
    """

    num_compiles: int = 0
    num_cache_hits: int = 0


_log: CompileLog | None = None
_lock = threading.Lock()


def compile_log() -> CompileLog:
    """Returns the process's log; begins to listen on the first call."""
    global _log
    with _lock:
        if _log is None:
            _log = CompileLog()
            jax.monitoring.register_event_duration_secs_listener(_on_duration)
            jax.monitoring.register_event_listener(_on_event)
        return _log


def _on_duration(event: str, duration_secs: float, **_: Any) -> None:
    del duration_secs
    if event == _COMPILE_EVENT and _log is not None:
        with _lock:
            _log.num_compiles += 1


def _on_event(event: str, **_: Any) -> None:
    if event == _CACHE_HIT_EVENT and _log is not None:
        with _lock:
            _log.num_cache_hits += 1
