"""One output, and one reply made of several.

Tokens become text and bytes where they arrive, for all requests of an engine step at
once; a connection's task wakes only to write what is ready.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from jserve.events import TokenEvent
from jserve.metrics import ServerMetrics
from jserve.server.errors import error_json
from jserve.server.formats import (
    DONE_EVENT,
    EVENT_HEAD,
    EVENT_TAIL,
    AnswerFormat,
    ChunkWriter,
    usage,
)
from jserve.server.stop_strings import StopFinder
from jserve.tokenizer import Tokenizer
from jserve_sched.request import FinishReason, Request

# A request that the server cut off ends as vLLM ends it.
_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "abort",
}


class Generation:
    """One output of one prompt.

    Attributes:
      request: What the engine was asked.
      finish_reason: Why it ended, in the API's words; None while it runs.
      error: What went wrong in the engine or here, if it did.
      tokens: Output token ids so far.
      num_cached_tokens: Prompt tokens that came from the prefix cache.
    """

    def __init__(
        self,
        *,
        request: Request,
        tokenizer: Tokenizer,
        finder: StopFinder,
        metrics: ServerMetrics,
        prefix: str = "",
    ):
        self.request = request
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.tokens: list[int] = []
        self.num_cached_tokens = 0
        self._eos_token_ids = tokenizer.eos_token_ids
        self._detokenizer = tokenizer.detokenizer(request.prompt_tokens[-8:].tolist())
        self._finder = finder
        self._metrics = metrics
        self._prefix = prefix
        self._texts: list[str] = []
        self._times_s: list[float] = []

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._texts)

    def take(self, event: TokenEvent) -> str:
        """Takes the next event; returns the text it made certain."""
        text, self._prefix = self._prefix, ""
        reason = event.finish_reason
        self.num_cached_tokens = max(self.num_cached_tokens, event.num_cached_tokens)
        if event.token is not None:
            self._time(event.time_s)
            self.tokens.append(event.token)
            is_mark = reason is FinishReason.STOP and event.token in self._eos_token_ids
            if not is_mark:
                text += self._show(self._detokenizer.step(event.token))
        if reason is not None or event.error is not None:
            text += self._show(self._detokenizer.finish()) + self._finder.flush()
        if event.error is not None:
            self.error = event.error
            self._finish("error", event.time_s)
        elif self._finder.is_found:
            self._finish("stop", event.time_s)
        elif reason is not None:
            self._finish(_REASONS[reason], event.time_s)
        self._texts.append(text)
        return text

    def fail(self, error: str, now_s: float) -> None:
        """Ends it since the server could not handle an event."""
        self.error = error
        if self.finish_reason is None:
            self._finish("error", now_s)

    def abandon(self, now_s: float) -> None:
        """Ends it since its client has gone."""
        if self.finish_reason is None:
            self._finish("abort", now_s, has_client_left=True)

    def _show(self, text: str) -> str:
        if len(self.tokens) <= self.request.min_tokens:
            return text  # no stop string may end it yet
        return self._finder.push(text)

    def _time(self, time_s: float) -> None:
        if self._times_s:
            self._metrics.gap_s.observe(time_s - self._times_s[-1])
        else:
            self._metrics.ttft_s.observe(time_s - self.request.arrival_s)
        self._times_s.append(time_s)

    def _finish(
        self, reason: str, now_s: float, *, has_client_left: bool = False
    ) -> None:
        self.finish_reason = reason
        request, metrics = self.request, self._metrics
        metrics.count_finished(reason)
        metrics.e2e_s.observe(now_s - request.arrival_s)
        metrics.prompt_tokens.observe(request.num_prompt_tokens)
        metrics.output_tokens.observe(len(self.tokens))
        # Late when its client left: violated. In time then: neither.
        times_s = [*self._times_s, now_s] if has_client_left else self._times_s
        is_complete = has_client_left or reason in ("stop", "length")
        is_met = request.slo.is_met(request.arrival_s, times_s, is_complete=is_complete)
        if not (has_client_left and is_met):
            metrics.count_slo(request.service_class, is_met)


class Reply:
    """All outputs of one HTTP request, in the order of their index.

    Attributes:
      generations: `num_choices` outputs of each prompt, prompt by prompt.
      form: How the answer is written.
      is_streamed: Whether each token is sent as it comes.
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
        self._num_choices = num_choices
        self._open = set(range(len(self.generations)))
        self._ready: list[bytes] = []
        self._wake = asyncio.Event()
        self._writers = [ChunkWriter(form, i) for i in range(len(self.generations))]

    @property
    def error(self) -> str | None:
        """What went wrong in the engine or here, if it did."""
        return next((one.error for one in self.generations if one.error), None)

    def take(self, index: int, event: TokenEvent) -> None:
        """Takes an event of output `index`."""
        generation = self.generations[index]
        text = generation.take(event)
        tokens = () if event.token is None else (event.token,)
        self._advance(index, text, tokens)

    def fail(self, index: int, error: str, now_s: float) -> None:
        """Ends output `index`: an event of it could not be taken."""
        self.generations[index].fail(error, now_s)
        self._advance(index, "", ())

    def _advance(self, index: int, text: str, tokens: Sequence[int]) -> None:
        """Has text sent, or the error that stands in its place, and the end."""
        generation = self.generations[index]
        reason, error = generation.finish_reason, generation.error
        if reason is not None:
            self._open.discard(index)
        if self.is_streamed:
            if error is None:
                chunk = self._writers[index].event(text, reason, tokens)
            else:
                chunk = EVENT_HEAD + error_json(500, error) + EVENT_TAIL
            self._ready.append(chunk)
            if not self._open:
                if self.form.has_usage:
                    self._ready.append(self.form.usage_event(self._usage()))
                self._ready.append(DONE_EVENT)
        elif not self._open:
            error = self.error
            self._ready = [self._answer() if error is None else error_json(500, error)]
        if self._ready:
            self._wake.set()

    async def wait(self) -> int:
        """Waits until there is something to send; returns how many bytes."""
        await self._wake.wait()
        return sum(map(len, self._ready))

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yields bytes to send, until every output has ended."""
        is_finished = False
        while not is_finished:
            await self.wait()
            self._wake.clear()
            is_finished = not self._open
            chunk = b"".join(self._ready)
            self._ready.clear()
            yield chunk

    def _usage(self) -> dict[str, Any]:
        firsts = self.generations[:: self._num_choices]
        return usage(
            prompt_tokens=sum(one.request.num_prompt_tokens for one in firsts),
            completion_tokens=sum(len(one.tokens) for one in self.generations),
            cached_tokens=sum(one.num_cached_tokens for one in firsts),
        )

    def _answer(self) -> bytes:
        choices = [
            self.form.choice(index, one.text, one.finish_reason, one.tokens)
            for index, one in enumerate(self.generations)
        ]
        return self.form.answer(choices, self._usage())
