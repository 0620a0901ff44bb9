"""Counts what the compiler does: a compilation while serving is a bug.

JAX reports each compilation, and each hit of its persistent cache, to listeners, in the
thread that compiles. Listeners cannot be removed, so the process has one count.
"""

import threading
from typing import Any

import jax

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"


class CompileLog:
    """Counts since the process began to listen.

    Attributes:
      num_compiles: Programs made executable by the compiler, those that it found in
        its persistent cache included.
    """

    def __init__(self) -> None:
        self.num_compiles = 0
        self._lock = threading.Lock()
        self._here = threading.local()
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)

    @property
    def num_cache_hits_here(self) -> int:
        """How many the calling thread found in the persistent cache.

        The difference over one compilation says whether that one was a hit, whatever
        other threads compile meanwhile.
        """
        return getattr(self._here, "num_hits", 0)

    def _on_duration(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILE_EVENT:
            with self._lock:
                self.num_compiles += 1

    def _on_event(self, event: str, **_: Any) -> None:
        if event == _CACHE_HIT_EVENT:
            self._here.num_hits = self.num_cache_hits_here + 1


COMPILE_LOG = CompileLog()
