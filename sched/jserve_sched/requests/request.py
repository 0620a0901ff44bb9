"""One request: what was asked, and how far it has come.

Progress is counted twice. *Applied* state (`output_tokens`) is what the engine has
returned; *projected* state adds what plans in flight will return, so that the next step
can be planned while the last one still runs.

    [0, num_dispatched_tokens)               KV written by plans dispatched so far
    [num_dispatched_tokens, num_projected_tokens)   tokens still to be computed
    num_projected_tokens = prompt + output + pending (sampled in flight, value unknown)
"""

import dataclasses
import enum
import math
from typing import Any

import numpy as np

from jserve_sched.requests.forecast import Forecast
from jserve_sched.requests.service_class import AdmissionRule
from jserve_sched.requests.slo import Pacing, Slo

# Of one request:
MAX_STOP_TOKENS = 8  # token ids that may end it
MAX_BIASES = 1024  # tokens with a bias
MAX_BAD_WORDS = 64
MAX_WORD_TOKENS = 8  # tokens of a bad word
MAX_LOGPROBS = 20  # likeliest tokens of which log-probabilities are returned


class RequestState(enum.Enum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(enum.Enum):
    """Why a request ended; the first two as OpenAI's API names them."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    REFUSED = "refused"  # it could not be attained any more
    EXPIRED = "expired"  # nor was it worth waiting for


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn; carried by the scheduler, read by the engine.

    Attributes:
      temperature: Temperature of the draw; 0 takes the likeliest token.
      top_k: Number of the likeliest tokens that are kept; 0 keeps all.
      min_p: Least probability of a token that is kept, as a share of the likeliest's.
      seed: Seed of the draws: that at position p depends on (seed, p) alone.
      biases: Tokens, and what is added to their logits.
      only_biased: Whether no token comes but those in `biases`.
      bad_words: Words, as tokens, that do not come.
      num_logprobs: Number of the likeliest tokens of which log-probabilities are
        returned beside the drawn token's; None for not even that.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    biases: tuple[tuple[int, float], ...] = ()
    only_biased: bool = False
    bad_words: tuple[tuple[int, ...], ...] = ()
    num_logprobs: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p={self.top_p} is not in (0, 1]")
        for name, most in (("temperature", 100), ("min_p", 1), ("seed", 2**32 - 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)} is not in 0..{most}")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} is below 0 (0 keeps all)")
        for name in ("frequency_penalty", "presence_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise ValueError(f"{name}={getattr(self, name)} is not in -2..2")
        if not 0 < self.repetition_penalty <= 100:
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty} is not in (0, 100]"
            )

    @property
    def is_adjusted(self) -> bool:
        """Whether logits are changed by biases, bad words or penalties."""
        penalties = (
            *(self.frequency_penalty, self.presence_penalty),
            self.repetition_penalty - 1,
        )
        return bool(any(penalties) or self.biases or self.bad_words or self.only_biased)


@dataclasses.dataclass(eq=False, kw_only=True, slots=True)
class Request:
    """A request and its progress. Only `Scheduler` changes the progress fields.

    Attributes:
      arrival_s: Time of arrival, clock seconds, from which deadlines count.
      prompt_tokens: `[n]` int32 token ids, n >= 1.
      min_tokens: Number of outputs before which no stop token is drawn.
      stop_token_ids: Tokens that end it (they are part of the output), at most
        `MAX_STOP_TOKENS`.
      guard, weight, admission, max_queue_wait_s: As in `ServiceClass`.
      priority: Tier: those with a lower number begin first.
      is_committed: Whether it will be served for sure: neither refused nor ended early.
      is_degraded: Whether it is served as best effort, since it could not be attained.
      retry_after_s: Seconds until a refused client should find room; infinite: never.
      constraint: What says which tokens may come next; read by the engine.
      predicted_output_tokens: Predicted length of the whole answer, 1 to `max_tokens`;
        `max_tokens` until it is predicted (`predict`).
      num_dispatched_tokens: Positions whose KV is written by plans dispatched so far.
      num_pending_tokens: Tokens sampled by plans in flight.
      pages: KV pages owned or shared, in order of position.
      page_hashes: Chained content hash of each full page of known tokens.
      num_published_pages: Own pages whose content the ledger may hand to others.
      num_cached_tokens: Prompt tokens found in the prefix cache at first admission.
      num_shared_tokens: Tokens in the prefix cache while it waits.
      forecast: First forecast of it; None if none was made.
    """

    request_id: str
    arrival_s: float
    prompt_tokens: np.ndarray
    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    slo: Slo = dataclasses.field(default_factory=Slo)
    service_class: str = "best_effort"
    guard: bool = False
    weight: float = 1.0
    priority: int = 0
    admission: AdmissionRule = "queue"
    max_queue_wait_s: float = math.inf
    sampling: SamplingParams = dataclasses.field(default_factory=SamplingParams)
    constraint: Any = None

    state: RequestState = RequestState.WAITING
    finish_reason: FinishReason | None = None
    is_committed: bool = dataclasses.field(init=False)
    is_degraded: bool = False
    retry_after_s: float | None = None
    output_tokens: list[int] = dataclasses.field(default_factory=list)
    first_scheduled_s: float | None = None
    num_dispatched_tokens: int = 0
    num_pending_tokens: int = 0
    num_plans_in_flight: int = 0
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    num_shared_tokens: int = 0
    slot: int | None = None
    pages: list[int] = dataclasses.field(default_factory=list)
    page_hashes: list[bytes] = dataclasses.field(default_factory=list)
    num_published_pages: int = 0
    predicted_output_tokens: int = dataclasses.field(init=False)
    first_predicted_tokens: int = dataclasses.field(init=False)
    pacing: Pacing = dataclasses.field(init=False)
    forecast: Forecast | None = None

    def __post_init__(self) -> None:
        self.prompt_tokens = np.asarray(self.prompt_tokens, np.int32)
        wrong = None
        if self.prompt_tokens.ndim != 1 or self.prompt_tokens.size == 0:
            shape = self.prompt_tokens.shape
            wrong = f"the prompt must be a non-empty list of token ids, got {shape}"
        elif self.max_tokens < 1:
            wrong = f"max_tokens={self.max_tokens} is below 1"
        elif not 0 <= self.min_tokens <= self.max_tokens:
            wrong = f"min_tokens={self.min_tokens} is not in 0..{self.max_tokens}"
        elif len(self.stop_token_ids) > MAX_STOP_TOKENS:
            wrong = f"{len(self.stop_token_ids)} stop tokens, at most {MAX_STOP_TOKENS}"
        if wrong:
            raise ValueError(f"request {self.request_id!r}: {wrong}")
        self.predicted_output_tokens = self.max_tokens
        self.first_predicted_tokens = self.max_tokens
        self.pacing = self.slo.pacing(self.arrival_s, self.max_tokens)
        is_queued = self.admission == "queue" and math.isinf(self.max_queue_wait_s)
        self.is_committed = is_queued or self.slo.is_best_effort

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_tokens)

    @property
    def num_known_tokens(self) -> int:
        """Tokens whose value the host knows: prompt and applied output."""
        return len(self.prompt_tokens) + len(self.output_tokens)

    @property
    def num_projected_tokens(self) -> int:
        """Tokens there will be once the plans in flight are applied."""
        return self.num_known_tokens + self.num_pending_tokens

    @property
    def num_remaining_tokens(self) -> int:
        """Projected tokens whose KV no plan has computed yet; 1 means decoding."""
        return (  # without a call, since each plan asks every running request
            len(self.prompt_tokens)
            + len(self.output_tokens)
            + self.num_pending_tokens
            - self.num_dispatched_tokens
        )

    @property
    def num_outputs_projected(self) -> int:
        """Output tokens there will be once the plans in flight are applied."""
        return len(self.output_tokens) + self.num_pending_tokens

    @property
    def expected_tokens_left(self) -> int:
        """Output tokens still to be planned, as predicted, or else one more."""
        return max(self.predicted_output_tokens - self.num_outputs_projected, 1)

    def predict(self, tokens: int) -> None:
        """Sets the predicted length of the whole answer, and paces it accordingly.

        `tokens` are clipped to what is possible: more than `min_tokens`, more than
        there are, up to `max_tokens`.
        """
        tokens = max(tokens, self.min_tokens + 1, self.num_outputs_projected + 1)
        tokens = min(tokens, self.max_tokens)
        if tokens != self.predicted_output_tokens:
            self.predicted_output_tokens = tokens
            self.pacing = self.slo.pacing(self.arrival_s, tokens)

    def degrade(self) -> None:
        """Makes it best effort."""
        self.is_degraded = self.is_committed = True
        self.slo = Slo()
        self.pacing = self.slo.pacing(self.arrival_s, self.predicted_output_tokens)

    @property
    def wants_more(self) -> bool:
        """Whether another output token may be planned."""
        num_outputs = len(self.output_tokens) + self.num_pending_tokens
        return num_outputs < self.max_tokens and self.finish_reason is None

    @property
    def pace_s(self) -> float:
        """When the next output token (after those in flight) is wanted, clock seconds.

        Soft: with a completion bound, tokens are paced towards it.
        """
        return self.pacing.pace_s(self.num_outputs_projected)

    @property
    def deadline_s(self) -> float:
        """After when the next token (after those in flight) violates the SLO."""
        return self.slo.deadline_s(self.arrival_s, self.num_outputs_projected)

    def known_tokens(self, start: int, stop: int) -> np.ndarray:
        """Returns the token ids at positions `[start, stop)`, int32.

        Raises:
          ValueError: If a position is not known yet.
        """
        num_prompt = len(self.prompt_tokens)
        if stop <= num_prompt:
            return self.prompt_tokens[start:stop]
        if stop > self.num_known_tokens:
            raise ValueError(
                f"request {self.request_id!r}: position {stop - 1} is not known yet "
                f"({self.num_known_tokens} tokens are)"
            )
        outputs = self.output_tokens[max(start - num_prompt, 0) : stop - num_prompt]
        return np.append(self.prompt_tokens[start:], np.array(outputs, np.int32))
