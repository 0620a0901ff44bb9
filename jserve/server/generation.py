"""One output of one prompt: from the engine's events to its text and its end."""

import dataclasses
from collections.abc import Sequence

from jserve.records.events import TokenEvent
from jserve.server.answer_text import AnswerText
from jserve.server.errors import ApiError
from jserve.server.logprobs import Noted
from jserve.server.metrics import ServerMetrics
from jserve.text.answer_parts import Delta, NamedCallParser, Parser, ReasoningParser
from jserve.text.tokenizer import Tokenizer
from jserve_sched.requests.request import FinishReason, Request

# A request that the server cancels ends with "abort", as in vLLM.
_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "abort",
}
# Status and code, which is also the reason in metrics, and message.
_REFUSALS = {
    FinishReason.REFUSED: (429, "unattainable", "the SLO cannot be attained now"),
    FinishReason.EXPIRED: (503, "queue_wait", "the SLO was missed in the queue"),
}

_CUT = "the server stops, and this request had not ended"
_BACK_S = 5.0  # until another one may serve


class Generation:
    """One output of one prompt.

    Attributes:
      finish_reason: Reason of its end, as in the API; None while it runs.
      error: Refusal, or error in the engine or the server; None without one.
      num_cached_tokens: Number of prompt tokens that came from the prefix cache.
      noted: Log-probabilities at its tokens, if they are wanted.
      scored: Those at the prompt's tokens, the first of which has none.
      num_prompt_tokens: Number of tokens of its prompt.
      times_s: When its tokens came, `time.monotonic` seconds.
      is_attained: Whether it has ended and attained its SLO.
      texts: Its text, in pieces, unless it has a parser.
      parts: What its parser has found, in pieces.
      num_reasoning_tokens: Tokens of its reasoning.
    """

    def __init__(
        self,
        *,
        request: Request,
        tokenizer: Tokenizer,
        text: AnswerText,
        metrics: ServerMetrics,
        prefix: str = "",
        scored: Sequence[int] = (),
    ):
        """Makes one.

        Args:
          prefix: The prompt's text, if it is echoed.
          scored: The prompt, if its tokens are scored: all but its first are the first
            outputs of the request.
        """
        self.request = request
        self.finish_reason: str | None = None
        self.error: ApiError | None = None
        self.tokens: list[int] = []
        self.noted: list[Noted] = []
        self.scored: list[Noted] = [(one, None) for one in scored[:1]]
        self._num_given = max(len(scored) - 1, 0)
        self.num_prompt_tokens = request.num_prompt_tokens + self._num_given
        self.num_cached_tokens = 0
        self._eos_token_ids = tokenizer.eos_token_ids
        self._detokenizer = tokenizer.detokenizer(
            [*request.prompt_tokens[-8:].tolist(), *scored[1:]][-8:],
            skips_special=text.skips_special,
        )
        self._finder, self.parser = text.finder, text.parser
        self._has_one_call = text.has_one_call
        self._metrics = metrics
        self._prefix = prefix
        self.texts: list[str] = []
        self.parts: list[Delta] = []
        self._has_calls = False
        self.num_reasoning_tokens = 0
        self.is_attained = False
        self.times_s: list[float] = []

    @property
    def shown_reason(self) -> str | None:
        """The reason of its end, as clients see it: a stop may be that of calls."""
        is_of_calls = self.finish_reason == "stop" and self._has_calls
        if is_of_calls and not isinstance(self.parser, NamedCallParser):
            return "tool_calls"
        return self.finish_reason

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it."""
        return self._finder.found

    def take(self, event: TokenEvent) -> str | Delta:
        """Takes the next event; returns what is now certain of the answer."""
        if event.token is not None and len(self.scored) <= self._num_given > 0:
            self.scored.append((event.token, event.logprobs))
            return ""
        text, self._prefix = self._prefix, ""
        reason = event.finish_reason
        self.num_cached_tokens = max(self.num_cached_tokens, event.num_cached_tokens)
        if event.token is not None:
            self._time(event.time_s)
            self.tokens.append(event.token)
            if event.logprobs is not None:
                self.noted.append((event.token, event.logprobs))
            is_hidden_end = (
                reason is FinishReason.STOP and event.token in self._eos_token_ids
            )
            if not is_hidden_end:
                text += self._show(self._detokenizer.step(event.token))
        if reason is not None or event.error is not None:
            text += self._show(self._detokenizer.finish()) + self._finder.flush()
        if event.error is not None:
            self.finish("error", event.time_s, error=ApiError(event.error, status=500))
        elif event.is_cut:
            error = ApiError(_CUT, status=503, code="shutdown", retry_after_s=_BACK_S)
            self.finish("shutdown", event.time_s, error=error)
        elif reason in _REFUSALS:
            status, code, message = _REFUSALS[reason]
            after_s = event.retry_after_s
            error = ApiError(message, status=status, code=code, retry_after_s=after_s)
            self.finish(code, event.time_s, error=error)
        elif self.stop_string is not None:
            self.finish("stop", event.time_s)
        elif reason is not None:
            self.finish(_REASONS[reason], event.time_s)
        if self.parser is None:
            self.texts.append(text)
            return text
        return self._take_apart(self.parser, text, event.time_s)

    def _take_apart(self, parser: Parser, text: str, time_s: float) -> Delta:
        is_reasoning = isinstance(parser, ReasoningParser) and parser.is_reasoning
        self.num_reasoning_tokens += is_reasoning
        found = parser.push(text)
        if self.finish_reason is not None:
            found += parser.finish()
        if self._has_one_call and any(one.number for one in found.calls):
            first = tuple(one for one in found.calls if not one.number)
            found = dataclasses.replace(found, calls=first)
            self.finish("stop", time_s)
        self.parts.append(found)
        self._has_calls |= bool(found.calls)
        return found

    def _show(self, text: str) -> str:
        if len(self.tokens) <= self.request.min_tokens - self._num_given:
            return self._finder.hide(text)  # a stop string may not end it yet
        return self._finder.push(text)

    def _time(self, time_s: float) -> None:
        if self.times_s:
            self._metrics.gap_s.observe(time_s - self.times_s[-1])
        else:
            ttft_s = time_s - self.request.arrival_s
            self._metrics.ttft_s.observe(ttft_s)
            if forecast := self.request.forecast:
                self._metrics.count_forecast(
                    forecast, self.request.service_class, ttft_s
                )
        self.times_s.append(time_s)

    def finish(
        self,
        reason: str,
        now_s: float,
        *,
        error: ApiError | None = None,
        has_client_left: bool = False,
    ) -> None:
        """Ends the output, if it has not ended, for a reason of the API."""
        self.error = self.error or error
        if self.finish_reason is not None:
            return
        self.finish_reason = reason
        request, metrics = self.request, self._metrics
        if error is not None and error.status != 500:
            metrics.count_rejected(reason, request.service_class)
            return
        if request.is_degraded:
            metrics.count_not_admitted("degraded", request.service_class)
        metrics.count_finished(reason)
        self._observe_times(now_s)
        metrics.prompt_tokens.observe(self.num_prompt_tokens)
        metrics.output_tokens.observe(len(self.tokens))
        # If the client left, the SLO is violated if the output was late by then;
        # otherwise it counts neither as attained nor as violated.
        times_s = [*self.times_s, now_s] if has_client_left else self.times_s
        is_complete = has_client_left or reason in ("stop", "length")
        self.is_attained = not request.is_degraded and request.slo.is_attained(
            request.arrival_s, times_s, is_complete=is_complete
        )
        if not (has_client_left and self.is_attained):
            metrics.count_slo(request.service_class, self.is_attained)

    def _observe_times(self, now_s: float) -> None:
        """Counts where the time of an output that has ended went."""
        request, metrics, times_s = self.request, self._metrics, self.times_s
        metrics.e2e_s.observe(now_s - request.arrival_s)
        if not times_s or request.first_scheduled_s is None:
            return
        metrics.queue_s.observe(request.first_scheduled_s - request.arrival_s)
        metrics.prefill_s.observe(times_s[0] - request.first_scheduled_s)
        decode_s = times_s[-1] - times_s[0]
        metrics.decode_s.observe(decode_s)
        if len(times_s) > 1:
            metrics.tpot_s.observe(decode_s / (len(times_s) - 1))
