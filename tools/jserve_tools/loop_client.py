"""Talks to an engine in this process, without HTTP in between.

A token's time is taken where the engine publishes it, once a step, and the tasks that
wait are woken by a single call per step.
"""

import asyncio
import contextlib
import dataclasses
import importlib.metadata
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jserve.events import NotServingError, QueueFullError, StepRecord, TokenEvent
from jserve_sched.report import Failure
from jserve_sched.request import FinishReason, Request, SamplingParams
from jserve_tools.clients import RequestFailedError
from jserve_tools.workload import WorkloadRequest

if TYPE_CHECKING:
    from jserve.loop import EngineLoop

_FAILURES = {
    ValueError: Failure.TOO_LONG,
    QueueFullError: Failure.REJECTED,
    NotServingError: Failure.ERROR,
}


class LoopClient:
    """An engine loop in this process, seen from one asyncio loop."""

    def __init__(self, engine: "EngineLoop", *, eos_token_ids: frozenset[int]):
        """Becomes the engine's listener; call it where an asyncio loop runs.

        Args:
          engine: The engine loop, started or about to be.
          eos_token_ids: What ends an answer, if a request asks for that.
        """
        self._engine = engine
        self._eos_token_ids = eos_token_ids
        self._asyncio = asyncio.get_running_loop()
        self._queues: dict[str, asyncio.Queue[tuple[TokenEvent, float]]] = {}
        engine.set_listener(self._publish)

    def _publish(self, events: Sequence[TokenEvent]) -> None:
        now_s = self._engine.clock.now_s()
        # The loop may be closed at any moment from its own thread: then nobody is
        # left to notify, and the engine's thread must live on.
        with contextlib.suppress(RuntimeError):
            self._asyncio.call_soon_threadsafe(self._deliver, tuple(events), now_s)

    def _deliver(self, events: Sequence[TokenEvent], time_s: float) -> None:
        for event in events:
            queue = self._queues.get(event.request_id)
            if queue is not None:
                queue.put_nowait((event, time_s))

    def now_s(self) -> float:
        """Returns the engine loop's clock, in seconds."""
        return self._engine.clock.now_s()

    async def send(self, request: WorkloadRequest) -> AsyncGenerator[float, None]:
        """Yields when each token came; closing the iterator cancels the request."""
        name = request.request_id
        queue = self._queues[name] = asyncio.Queue()
        is_live = False
        try:
            self._submit(request)
            is_live = True
            while is_live:
                event, time_s = await queue.get()
                is_live = event.finish_reason is None and event.error is None
                if event.error is not None:
                    raise RequestFailedError(Failure.ERROR, event.error)
                if event.finish_reason is FinishReason.CANCELLED:
                    raise RequestFailedError(Failure.ERROR, "the engine cancelled it")
                if event.token is not None:
                    yield time_s
        finally:
            if is_live:
                self._engine.cancel(name)
            del self._queues[name]

    def _submit(self, request: WorkloadRequest) -> None:
        try:
            self._engine.submit(
                Request(
                    request_id=request.request_id,
                    arrival_s=self.now_s(),
                    prompt_tokens=request.prompt,
                    max_tokens=request.max_tokens,
                    stop_token_ids=(
                        frozenset() if request.ignore_eos else self._eos_token_ids
                    ),
                    sampling=SamplingParams(
                        temperature=request.temperature, seed=request.seed
                    ),
                    slo=request.slo,
                    service_class=request.service_class,
                )
            )
        except (ValueError, QueueFullError, NotServingError) as error:
            kind = next(kind for kind in _FAILURES if isinstance(error, kind))
            raise RequestFailedError(_FAILURES[kind], str(error)) from error

    async def facts(self) -> Mapping[str, Any]:
        """Returns what a server of this engine would state at /jserve/info."""
        import jax  # loaded by the engine already; not at start-up

        devices = jax.devices()
        return {
            "engine": dataclasses.asdict(self._engine.config),
            "max_model_len": self._engine.max_model_len,
            "num_kv_tokens": self._engine.num_kv_tokens,
            "stats": dataclasses.asdict(self._engine.stats()),
            "versions": {
                name: importlib.metadata.version(name) for name in ("jax", "flax")
            },
            "device": {
                "platform": devices[0].platform,
                "kind": devices[0].device_kind,
                "count": len(devices),
            },
        }

    async def steps(self, since: int) -> list[StepRecord] | None:
        """Returns the steps numbered from `since`."""
        return self._engine.steps(since)
