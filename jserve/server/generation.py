"""One output, and one reply made of several.

The one idea: tokens become text and bytes where they arrive, for all requests of
an engine step at once; a connection's task wakes only to write what is ready.
"""

import asyncio
from collections.abc import Sequence

from jserve.events import TokenEvent
from jserve.metrics import ServerMetrics
from jserve.server.errors import error_json
from jserve.server.formats import (
    DONE_EVENT,
    EVENT_HEAD,
    EVENT_TAIL,
    AnswerFormat,
    ChunkWriter,
    Usage,
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
      request: what the engine was asked.
      finish_reason: why it ended, in the API's words; None while it runs.
      error: what went wrong in the engine or here, if it did.
      tokens: output token ids so far.
      num_cached_tokens: prompt tokens that came from the prefix cache.
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
            self._finish("abort", now_s, is_clients_wish=True)

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
        self, reason: str, now_s: float, *, is_clients_wish: bool = False
    ) -> None:
        self.finish_reason = reason
        request, metrics = self.request, self._metrics
        metrics.count_finished(reason)
        metrics.e2e_s.observe(now_s - request.arrival_s)
        metrics.prompt_tokens.observe(request.num_prompt_tokens)
        metrics.output_tokens.observe(len(self.tokens))
        if is_clients_wish:
            # Late already: broken. In time when its client left: neither.
            times_s = [*self._times_s, now_s]
            if request.slo.is_met(request.arrival_s, times_s, is_complete=True):
                return
            is_met = False
        else:
            is_met = request.slo.is_met(
                request.arrival_s,
                self._times_s,
                is_complete=reason in ("stop", "length"),
            )
        metrics.count_slo(request.service_class, is_met)


class Reply:
    """All outputs of one HTTP request, in the order of their index.

    Attributes:
      generations: the outputs.
      form: how the answer is written.
      is_streamed: whether each token is sent as it comes.
      has_left: whether the client has gone, so that nobody reads on.
    """

    def __init__(
        self,
        *,
        generations: Sequence[Generation],
        num_choices: int,
        form: AnswerFormat,
        is_streamed: bool,
    ):
        """Makes a reply that waits for its first event.

        Args:
          generations: `num_choices` for each prompt, prompt by prompt.
          num_choices: outputs of each prompt.
          form: how the answer is written.
          is_streamed: whether each token is sent as it comes.
        """
        self.generations = tuple(generations)
        self.form = form
        self.is_streamed = is_streamed
        self.has_left = False
        self._num_choices = num_choices
        self._open = set(range(len(self.generations)))
        self._ready: list[bytes] = []
        self._wake = asyncio.Event()
        self._writers = [ChunkWriter(form, i) for i in range(len(self.generations))]

    @property
    def is_finished(self) -> bool:
        """Whether every output has ended."""
        return not self._open

    @property
    def error(self) -> str | None:
        """What went wrong in the engine or here, if it did."""
        return next((one.error for one in self.generations if one.error), None)

    def take(self, index: int, event: TokenEvent) -> None:
        """Takes an event of output `index`."""
        generation = self.generations[index]
        text = generation.take(event)
        if generation.finish_reason is not None:
            self._open.discard(index)
        if not self.is_streamed:
            if not self._open:
                self._wake.set()
        elif generation.error is not None:
            self._send_error(generation.error)
        else:
            tokens = () if event.token is None else (event.token,)
            self._send(
                self._writers[index].event(text, generation.finish_reason, tokens)
            )

    def fail(self, index: int, error: str, now_s: float) -> None:
        """Ends output `index`: an event of it could not be taken."""
        self.generations[index].fail(error, now_s)
        self._open.discard(index)
        if self.is_streamed:
            self._send_error(error)
        elif not self._open:
            self._wake.set()

    def _send_error(self, error: str) -> None:
        self._send(EVENT_HEAD + error_json(500, error) + EVENT_TAIL)

    def _send(self, sse_event: bytes) -> None:
        self._wake.set()
        self._ready.append(sse_event)
        if not self._open:
            if self.form.has_usage:
                self._ready.append(self.form.usage_event(self.usage()))
            self._ready.append(DONE_EVENT)

    def leave(self) -> None:
        """Says that the client has gone."""
        self.has_left = True
        self._wake.set()

    async def read(self) -> bytes:
        """Waits for bytes to send, the end, or the client's leaving."""
        await self._wake.wait()
        self._wake.clear()
        chunk = b"".join(self._ready)
        self._ready.clear()
        return chunk

    def usage(self) -> Usage:
        """Returns the tokens counted so far."""
        firsts = self.generations[:: self._num_choices]
        return Usage(
            prompt_tokens=sum(one.request.num_prompt_tokens for one in firsts),
            completion_tokens=sum(len(one.tokens) for one in self.generations),
            cached_tokens=sum(one.num_cached_tokens for one in firsts),
        )

    def answer(self) -> bytes:
        """Returns the body of a finished reply that is not streamed."""
        choices = [
            self.form.choice(index, one.text, one.finish_reason, one.tokens)
            for index, one in enumerate(self.generations)
        ]
        return self.form.answer(choices, self.usage())
