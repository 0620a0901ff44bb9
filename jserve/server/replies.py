"""Replies, which consist of outputs, and the router that gives them tokens.

The engine's thread hands the events of a whole step to the event loop in a single call.
There the tokens of all requests become text and bytes, and each connection gets one
write. The task of a connection wakes only to end an answer, to break a silence, or when
its client reads too slowly.
"""

import asyncio
import collections
import contextlib
import logging
import operator
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jserve.engine.interface import ServingEngine
from jserve.records.events import TokenEvent
from jserve.server.errors import SURPRISE, ApiError
from jserve.server.formats import COMMENT_EVENT, AnswerFormat
from jserve.server.generation import Generation
from jserve.server.metrics import ServerMetrics
from jserve.server.slo_usage import slo_usage
from jserve.text.answer_parts import Delta
from jserve_sched.requests.forecast import Forecast
from jserve_sched.requests.request import Request

_LOGGER = logging.getLogger(__name__)
_MAX_TIMED_STEPS = 4096


class Reply:
    """All outputs of one HTTP request, in the order of their index.

    Attributes:
      generations: `num_choices` outputs of each prompt, prompt by prompt.
      has_begun: Whether the head of the response has been sent.
      is_failed: Whether an output failed before that: the answer is its error.
      write: Writes a part of the answer at once, or returns False if it cannot.
    """

    def __init__(
        self,
        *,
        generations: Sequence[Generation],
        num_choices: int,
        form: AnswerFormat,
        is_streamed: bool,
    ):
        self.generations = tuple(generations)
        self.form = form
        self.is_streamed = is_streamed
        self.has_begun = False
        self._num_choices = num_choices
        self._open = set(range(len(self.generations)))
        self._ready: list[bytes] = []
        self._wake = asyncio.Event()
        self.write: Callable[[bytes], bool] = lambda part: False
        self.is_failed = False
        self._is_idle = False  # the task of the connection, which waits for more
        self._last_s = 0.0  # time of the last write, on the event loop's clock
        self._writers = [
            form.writer(index, one, self.usage)
            for index, one in enumerate(self.generations)
        ]

    @property
    def error(self) -> ApiError | None:
        """Error of the first output that failed; None without one."""
        return next((one.error for one in self.generations if one.error), None)

    @property
    def forecast(self) -> Forecast | None:
        """Forecast of the output that should end last; None without any."""
        found = [one.request.forecast for one in self.generations]
        known = (one for one in found if one)
        return max(known, key=lambda one: one.ttlt_s[1], default=None)

    @property
    def is_committed(self) -> bool:
        """Whether no output can be refused any more."""
        return all(one.request.is_committed for one in self.generations)

    @property
    def is_degraded(self) -> bool:
        """Whether an output is served as best effort instead."""
        return any(one.request.is_degraded for one in self.generations)

    def take(self, index: int, event: TokenEvent) -> None:
        """Takes an event of output `index`."""
        generation = self.generations[index]
        text = generation.take(event)
        self._advance(index, text, num_new=int(event.token is not None))

    def fail(self, index: int, now_s: float) -> None:
        """Ends output `index`, since one of its events could not be handled."""
        error = ApiError(SURPRISE, status=500)
        self.generations[index].finish("error", now_s, error=error)
        self._advance(index, "", num_new=0)

    def _advance(self, index: int, text: str | Delta, *, num_new: int) -> None:
        """Makes new text, or an error in its place, and the end ready to be sent."""
        generation = self.generations[index]
        reason, error = generation.shown_reason, generation.error
        if reason is not None:
            self._open.discard(index)
        if self.is_failed:
            return
        if error is not None and not self.has_begun:  # the answer has its status
            self.is_failed = True
            self._open.clear()
            self._ready = [error.body_at(self.form.door)]
        elif self.is_streamed:
            writer = self._writers[index]
            if error is None:
                tokens = generation.tokens[-1:] if num_new else ()
                noted = generation.noted[-1:] if num_new else ()
                chunk = writer.event(text, reason, tokens, noted)
            else:
                chunk = writer.failure(error)
            if chunk:
                self._ready.append(chunk)
            if not self._open:
                self._ready.append(writer.end())
        elif not self._open:
            self._ready = [self.form.answer(self.generations, self.usage)]

    def flush(self, now_s: float) -> None:
        """Writes what is ready, or leaves it to the task of the connection."""
        if not self._ready:
            return
        if self._is_idle and self._open and self.write(b"".join(self._ready)):
            self._ready.clear()
            self._last_s = now_s
        else:
            self._wake.set()

    async def next(self, keep_alive_s: float) -> tuple[bytes, bool]:
        """Waits for bytes to send; returns them, and whether more will come.

        Args:
          keep_alive_s: Longest silence of a stream before a comment; 0 sets no limit.
        """
        now_s = asyncio.get_running_loop().time
        self._last_s = now_s()
        can_break = self.is_streamed and keep_alive_s > 0
        while not self._ready:
            self._is_idle = True
            due_s = self._last_s + keep_alive_s if can_break else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due_s):
                    await self._wake.wait()
            self._wake.clear()
            if can_break and not self._ready and now_s() - self._last_s >= keep_alive_s:
                self._ready.append(COMMENT_EVENT)
        self._is_idle = False
        chunk = b"".join(self._ready)
        self._ready.clear()
        return chunk, bool(self._open)

    def failure(self, error: ApiError) -> bytes:
        """Returns what ends an answer that fails, whether it has begun or not."""
        if not (self.is_streamed and self.has_begun):
            return error.body_at(self.form.door)
        return self._writers[0].failure(error) + self._writers[0].end()

    def usage(self, *, is_final: bool = True) -> dict[str, Any]:
        """Returns OpenAI's `usage`; a prompt with several outputs counts once."""
        firsts = self.generations[:: self._num_choices]
        num_prompt = sum(one.num_prompt_tokens for one in firsts)
        num_output = sum(len(one.tokens) for one in self.generations)
        num_cached = sum(one.num_cached_tokens for one in firsts)
        num_reasoning = sum(one.num_reasoning_tokens for one in self.generations)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_output,
            "total_tokens": num_prompt + num_output,
            "prompt_tokens_details": {"cached_tokens": num_cached},
            "completion_tokens_details": {"reasoning_tokens": num_reasoning},
            **(slo_usage(self.generations) if is_final else {}),
        }


class TokenRouter:
    """Gives events to replies, on the event loop; any thread may call `open`."""

    def __init__(self, engine: ServingEngine, metrics: ServerMetrics):
        self._engine = engine
        self._metrics = metrics
        self._targets: dict[str, tuple[Reply, int]] = {}
        self._publish_s: collections.deque[float] = collections.deque(
            maxlen=_MAX_TIMED_STEPS
        )

    def publish(
        self, loop: asyncio.AbstractEventLoop, events: Sequence[TokenEvent]
    ) -> None:
        """Hands one step's events to the loop; called from the engine's thread."""
        with contextlib.suppress(RuntimeError):  # it has closed, as have connections
            loop.call_soon_threadsafe(self._route, events)

    def open(self, reply: Reply) -> None:
        """Submits all requests of a reply, or none; may wait for a plan to be made.

        Raises:
          ValueError: If one can never run, or its id is in use.
          QueueFullError: If too many requests wait.
          NotServingError: If the engine accepts no requests.
        """
        try:
            for index, generation in enumerate(reply.generations):
                request = generation.request
                self._targets[request.request_id] = reply, index
                self._engine.submit(request)
        except BaseException:
            self._drop(reply)
            raise

    def close(self, reply: Reply) -> None:
        """Cancels what still runs: its client has left, or its answer is an error."""
        self._drop(reply)
        now_s, error = time.monotonic(), reply.error if reply.is_failed else None
        reason = (error.code or "error") if error else "abort"
        for one in reply.generations:
            one.finish(reason, now_s, error=error, has_client_left=error is None)

    def _drop(self, reply: Reply) -> None:
        for generation in reply.generations:
            request_id = generation.request.request_id
            if self._targets.pop(request_id, None) is not None:
                self._engine.cancel(request_id)

    def _route(self, events: Sequence[TokenEvent]) -> None:
        start_s = time.perf_counter()
        replies: dict[Reply, None] = {}
        for event in events:
            target = self._targets.get(event.request_id)
            if target is None:
                continue
            reply, index = target
            replies[reply] = None
            try:
                reply.take(index, event)
            except Exception:  # the other requests must still get their events
                _LOGGER.exception("request %s failed", event.request_id)
                reply.fail(index, event.time_s)
            if reply.generations[index].finish_reason is not None:
                self._targets.pop(event.request_id, None)
                if event.finish_reason is None:
                    self._engine.cancel(event.request_id)
        now_s = asyncio.get_running_loop().time()
        for reply in replies:
            try:
                reply.flush(now_s)
            except Exception:  # its connection's task finds what is wrong
                _LOGGER.exception("an answer could not be written")
        duration_s = time.perf_counter() - start_s
        self._metrics.publish_s.observe(duration_s)
        self._publish_s.append(duration_s)

    def open_requests(self) -> list[Request]:
        """Returns the requests without an end; those with the next deadline first."""
        found = [
            reply.generations[index].request for reply, index in self._targets.values()
        ]
        return sorted(found, key=operator.attrgetter("deadline_s"))

    def publish_times_s(self) -> dict[str, float]:
        """Returns p50 and p99 of detokenising and encoding a step, in seconds."""
        if not self._publish_s:
            return {}
        p50, p99 = np.percentile(self._publish_s, (50, 99)).tolist()
        return {"p50": p50, "p99": p99}
