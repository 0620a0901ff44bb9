"""Counts what the compiler does: a compilation while serving is a bug.

JAX reports each real compilation, and each hit of its persistent cache, to
listeners, in the thread that compiles. Listeners cannot be taken away again, so the
process has one log.
"""

import threading
from typing import Any

import jax

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"


class CompileLog:
    """Counts since the process began to listen.

    Attributes:
      num_compiles: programs made executable by the compiler, those that it found in
        its persistent cache included.
    """

    def __init__(self) -> None:
        self.num_compiles = 0
        self._here = _ThreadCounts()

    @property
    def num_cache_hits_here(self) -> int:
        """How many the calling thread found in the persistent cache.

        The difference over one compilation says whether that one was a hit, whatever
        other threads compile meanwhile.
        """
        return self._here.num_cache_hits

    def on_compile(self) -> None:
        """Counts a compilation; called under the module's lock."""
        self.num_compiles += 1

    def on_cache_hit(self) -> None:
        """Counts a hit for the calling thread."""
        self._here.num_cache_hits += 1


class _ThreadCounts(threading.local):
    num_cache_hits = 0


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
            _log.on_compile()


def _on_event(event: str, **_: Any) -> None:
    if event == _CACHE_HIT_EVENT and _log is not None:
        _log.on_cache_hit()
