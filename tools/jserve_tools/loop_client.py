"""Talks to an engine in this process, without HTTP in between.

The one idea: a token's time is taken where the engine publishes it, once a step,
and the tasks that wait are woken by a single call per step.
"""

import asyncio
import contextlib
import dataclasses
import importlib.metadata
import platform
import statistics
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Protocol

from jserve.config import EngineConfig
from jserve.events import (
    EngineStats,
    NotServingError,
    QueueFullError,
    StepRecord,
    TokenEvent,
)
from jserve_sched.clock import Clock
from jserve_sched.report import Failure
from jserve_sched.request import FinishReason, Request, SamplingParams
from jserve_tools.clients import RequestFailedError, TokenTime
from jserve_tools.workload import WorkloadRequest

# Makes, for one request, the function from its next token to the text it adds.
DetokeniserFactory = Callable[[], Callable[[int], str]]


class Engine(Protocol):
    """The part of jserve.loop.EngineLoop that is used here."""

    @property
    def config(self) -> EngineConfig:
        """What the engine was told."""
        ...

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and output together."""
        ...

    @property
    def num_kv_tokens(self) -> int:
        """Tokens the KV pool holds."""
        ...

    @property
    def clock(self) -> Clock:
        """The clock of its events."""
        ...

    def set_listener(self, publish: Callable[[Sequence[TokenEvent]], None]) -> None:
        """Has `publish` called once a step, from the engine's thread."""
        ...

    def submit(self, request: Request) -> None:
        """Queues a request."""
        ...

    def cancel(self, request_id: str) -> None:
        """Stops a request; unknown ones are ignored."""
        ...

    def stats(self) -> EngineStats:
        """Returns a snapshot of the counters."""
        ...

    def steps(self, since: int = 0) -> list[StepRecord]:
        """Returns the steps numbered from `since`."""
        ...


class LoopClient:
    """An engine loop in this process, seen from one asyncio loop."""

    def __init__(
        self,
        engine: Engine,
        *,
        detokeniser: DetokeniserFactory | None,
        eos_token_ids: Callable[[], frozenset[int]] = frozenset,
    ):
        """Becomes the engine's listener; call it where an asyncio loop runs.

        Args:
          engine: the engine loop, started.
          detokeniser: if given, tokens are turned into text, and the time is kept.
          eos_token_ids: says what ends an answer, if a request asks for that.
        """
        self._engine = engine
        self._asyncio = asyncio.get_running_loop()
        self._queues: dict[str, asyncio.Queue[tuple[TokenEvent, float]]] = {}
        self._detokeniser = detokeniser
        self._texts: dict[str, Callable[[int], str]] = {}
        self._detokenise_s: list[float] = []
        self._eos_token_ids = eos_token_ids
        engine.set_listener(self._publish)

    def _publish(self, events: Sequence[TokenEvent]) -> None:
        now_s = self._engine.clock.now_s()
        # The loop may be closed at any moment from its own thread: then nobody is
        # left to tell, and the engine's thread must live on.
        with contextlib.suppress(RuntimeError):
            self._asyncio.call_soon_threadsafe(self._deliver, tuple(events), now_s)

    def _deliver(self, events: Sequence[TokenEvent], time_s: float) -> None:
        if self._detokeniser is not None:
            self._detokenise(events)
        for event in events:
            queue = self._queues.get(event.request_id)
            if queue is not None:
                queue.put_nowait((event, time_s))

    def _detokenise(self, events: Sequence[TokenEvent]) -> None:
        start_s = time.perf_counter()
        for event in events:
            text = self._texts.get(event.request_id)
            if text is not None and event.token is not None:
                text(event.token)
        self._detokenise_s.append(time.perf_counter() - start_s)

    def now_s(self) -> float:
        """Returns the engine loop's clock, in seconds."""
        return self._engine.clock.now_s()

    async def send(self, request: WorkloadRequest) -> AsyncGenerator[TokenTime, None]:
        """Yields the request's tokens; closing the iterator cancels it."""
        name = request.request_id
        queue: asyncio.Queue[tuple[TokenEvent, float]] = asyncio.Queue()
        self._queues[name] = queue
        if self._detokeniser is not None:
            self._texts[name] = self._detokeniser()
        is_live = False
        try:
            self._submit(request)
            is_live = True
            index = 0
            while True:
                event, time_s = await queue.get()
                is_live = event.finish_reason is None and event.error is None
                if event.error is not None:
                    raise RequestFailedError(Failure.ERROR, event.error)
                if event.finish_reason is FinishReason.CANCELLED:
                    raise RequestFailedError(Failure.ERROR, "the engine cancelled it")
                if event.token is not None:
                    yield TokenTime(index, time_s)
                    index += 1
                if not is_live:
                    return
        finally:
            if is_live:
                self._engine.cancel(name)
            del self._queues[name]
            self._texts.pop(name, None)

    def _submit(self, request: WorkloadRequest) -> None:
        try:
            self._engine.submit(
                Request(
                    request_id=request.request_id,
                    arrival_s=self.now_s(),
                    prompt_tokens=request.prompt,
                    max_tokens=request.max_tokens,
                    stop_token_ids=(
                        frozenset() if request.ignore_eos else self._eos_token_ids()
                    ),
                    sampling=SamplingParams(
                        temperature=request.temperature, seed=request.seed
                    ),
                    slo=request.slo,
                    service_class=request.service_class,
                )
            )
        except ValueError as error:
            raise RequestFailedError(Failure.TOO_LONG, str(error)) from error
        except QueueFullError as error:
            raise RequestFailedError(Failure.REJECTED, str(error)) from error
        except NotServingError as error:
            raise RequestFailedError(Failure.ERROR, str(error)) from error

    async def facts(self) -> Mapping[str, Any]:
        """Returns the engine's configuration, the device and JAX's version."""
        import jax  # loaded by the engine already; not at start-up

        devices = jax.devices()
        return {
            "engine": dataclasses.asdict(self._engine.config),
            "max_model_len": self._engine.max_model_len,
            "num_kv_tokens": self._engine.num_kv_tokens,
            "versions": {
                "python": platform.python_version(),
                "jax": importlib.metadata.version("jax"),
                "flax": importlib.metadata.version("flax"),
            },
            "device": {
                "platform": devices[0].platform,
                "kind": devices[0].device_kind,
                "count": len(devices),
            },
        }

    async def stats(self) -> Mapping[str, Any] | None:
        """Returns the fields of EngineStats."""
        stats = dataclasses.asdict(self._engine.stats())
        return stats | {"health": stats["health"].value}

    async def steps(self, since: int) -> list[StepRecord] | None:
        """Returns the steps numbered from `since`."""
        return self._engine.steps(since)

    async def take_detokenise_s(self) -> float | None:
        """Returns the median time of a step's text since last asked, if timed."""
        taken, self._detokenise_s = self._detokenise_s, []
        return statistics.median(taken) if taken else None
