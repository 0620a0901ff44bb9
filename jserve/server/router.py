"""Carries tokens from the engine's thread to the replies that wait for them.

There is one hand-over an engine step: the engine's thread leaves the whole step's
events with the event loop in a single call; all else happens there.
"""

import asyncio
import collections
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jserve.events import NotServingError, QueueFullError, TokenEvent
from jserve.metrics import ServerMetrics
from jserve.server.errors import SURPRISE
from jserve.server.generation import Reply

if TYPE_CHECKING:
    from jserve.loop import EngineLoop

_LOGGER = logging.getLogger(__name__)
_MAX_TIMED_STEPS = 4096


class TokenRouter:
    """Knows which reply each live request belongs to. Lives on the event loop."""

    def __init__(self, engine: "EngineLoop", metrics: ServerMetrics):
        self._engine = engine
        self._metrics = metrics
        self._targets: dict[str, tuple[Reply, int]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._publish_s: collections.deque[float] = collections.deque(
            maxlen=_MAX_TIMED_STEPS
        )

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Says which event loop the replies live on."""
        self._loop = loop

    def publish(self, events: Sequence[TokenEvent]) -> None:
        """Takes one step's events; called from the engine's thread."""
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._route, events)
        except RuntimeError:
            return  # the loop has closed, and with it every connection

    def open(self, reply: Reply) -> None:
        """Submits all requests of a reply, or none.

        Raises:
          ValueError: if one can never run.
          QueueFullError: if too many wait.
          NotServingError: if the engine takes none.
        """
        try:
            for index, generation in enumerate(reply.generations):
                request = generation.request
                self._targets[request.request_id] = reply, index
                self._engine.submit(request)
        except (ValueError, QueueFullError, NotServingError) as error:
            self._drop(reply)
            if not isinstance(error, ValueError):
                for request in (one.request for one in reply.generations):
                    is_met = request.slo.is_best_effort
                    self._metrics.count_rejected(error)
                    self._metrics.count_slo(request.service_class, is_met)
            raise

    def close(self, reply: Reply) -> None:
        """Cancels what of a reply still runs: its client has gone."""
        self._drop(reply)
        now_s = self._engine.clock.now_s()
        for generation in reply.generations:
            generation.abandon(now_s)

    def _drop(self, reply: Reply) -> None:
        for generation in reply.generations:
            request_id = generation.request.request_id
            if self._targets.pop(request_id, None) is not None:
                self._engine.cancel(request_id)

    def _route(self, events: Sequence[TokenEvent]) -> None:
        start_s = time.perf_counter()
        for event in events:
            target = self._targets.get(event.request_id)
            if target is None:
                continue
            reply, index = target
            try:
                reply.take(index, event)
            except Exception:  # must not cost the other requests their events
                _LOGGER.exception("request %s failed", event.request_id)
                reply.fail(index, SURPRISE, event.time_s)
            if reply.generations[index].finish_reason is not None:
                del self._targets[event.request_id]
                if event.finish_reason is None:
                    self._engine.cancel(event.request_id)
        duration_s = time.perf_counter() - start_s
        self._metrics.publish_s.observe(duration_s)
        self._publish_s.append(duration_s)

    def publish_times_s(self) -> dict[str, float]:
        """Returns what detokenising and encoding cost a step, over recent steps."""
        if not self._publish_s:
            return {}
        p50, p99 = np.percentile(self._publish_s, (50, 99)).tolist()
        return {"p50": p50, "p99": p99}
