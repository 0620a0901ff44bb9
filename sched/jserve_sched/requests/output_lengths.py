"""Output lengths: estimators, by name and options, and how wrong they were.

max_tokens                         as long as it may be
mean                               the mean of the answers to requests like it
quantile:q=0.75                    long enough for a share q of them
oracle:error=0.5                   the truth with an error of a known size, for studies

Tokens are paced by these estimates, so they are conservative until there is evidence.
Where too few answers of a kind are known, those of the request's class are used, then
all answers, and at last `max_tokens`. The answer to a request without stop tokens is
known to have `max_tokens`.

The paper on scheduling by simulated annealing (arXiv 2504.14966) plans with predicted
lengths; how it predicts them is not known to us. All estimators here are ours.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from jserve_sched.options import make_from_spec
from jserve_sched.requests.request import Request

_LEAST = 8  # answers of a kind for an estimate; 16 or 32 cost more on four traces
_MEMORY = 512  # answers of a kind that are remembered
_Kind = tuple[str | int, ...]


class LengthEstimator(Protocol):
    """Predicts how long an answer will be, and learns from those that ended."""

    def estimate(self, request: Request) -> int:
        """Returns the length of the whole answer in tokens, 1 to `max_tokens`.

        The same for the same request until the next `update`.
        """

    def update(self, request: Request) -> None:
        """Learns from a request that has ended, by a stop token or `max_tokens`."""
        return


@dataclasses.dataclass(frozen=True)
class MaxTokens(LengthEstimator):
    """Every answer is as long as it may be; nothing is learned."""

    def estimate(self, request: Request) -> int:
        """Returns `max_tokens`."""
        return request.max_tokens


@dataclasses.dataclass(eq=False, kw_only=True)
class MeanLength:
    """The mean of the answers to requests like it.

    A request is like those of its class whose prompts have a length in the same power
    of two. An answer that `max_tokens` cut counts as it is.
    """

    def __post_init__(self) -> None:
        self._known: dict[_Kind, collections.deque[int]] = collections.defaultdict(
            lambda: collections.deque(maxlen=_MEMORY)
        )

    def _summary(self, tokens: Sequence[int]) -> float:
        return float(np.mean(tokens))

    def estimate(self, request: Request) -> int:
        """Returns the length that answers of the request's kind have."""
        for kind in _kinds(request) if request.stop_token_ids else ():
            if len(self._known[kind]) >= _LEAST:
                return _whole(self._summary(self._known[kind]), request)
        return request.max_tokens

    def update(self, request: Request) -> None:
        """Learns from a request that had stop tokens and was not cancelled."""
        for kind in _kinds(request) if request.stop_token_ids else ():
            self._known[kind].append(len(request.output_tokens))


@dataclasses.dataclass(eq=False, kw_only=True)
class QuantileLength(MeanLength):
    """A quantile of the answers to requests like it.

    Attributes:
      q: Share of answers that should not be longer, between 0 and 1.
    """

    q: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.q < 1:
            raise ValueError(f"q={self.q} is not between 0 and 1")

    def _summary(self, tokens: Sequence[int]) -> float:
        return float(np.quantile(tokens, self.q))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OracleLengths(LengthEstimator):
    """The truth with an error that seed and request id decide.

    Attributes:
      error: Largest share that a length is off by, evenly drawn, 0 to 1.
      factor: Factor by which a length is too long or too short, with equal chance.
      true_tokens: Each answer's length in tokens, by request id.
    """

    error: float = 0.0
    factor: float = 1.0
    seed: int = 0
    true_tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.error <= 1:
            raise ValueError(f"error={self.error} is not in 0..1")
        if not 1 <= self.factor < float("inf"):
            raise ValueError(f"factor={self.factor} is not a finite number from 1")

    def estimate(self, request: Request) -> int:
        """Returns the true length with its error."""
        tokens = float(self.true_tokens[request.request_id])
        if self.error or self.factor != 1:
            name = f"{self.seed}:{request.request_id}".encode()
            digest = hashlib.blake2b(name, digest_size=8).digest()
            point = int.from_bytes(digest, "big")  # 64 bits that look random
            tokens *= 1 + self.error * (2 * (point >> 1) / 2**63 - 1)
            tokens *= self.factor if point % 2 else 1 / self.factor
        return _whole(tokens, request)


def _kinds(request: Request) -> tuple[_Kind, ...]:
    """Returns the names of a request's kinds, the closest first."""
    name, band = request.service_class, len(request.prompt_tokens).bit_length()
    return ((name, band), (name,), ())


def _whole(tokens: float, request: Request) -> int:
    return min(max(round(tokens), 1), request.max_tokens)


def make_length_estimator(
    spec: str, true_tokens: Mapping[str, int] | None = None
) -> LengthEstimator:
    """Returns the estimator of a spec; `oracle` needs lengths by request id.

    Raises:
      ValueError: If the estimator or an option is unknown, or a value is invalid.
    """
    known: dict[str, type[LengthEstimator]] = {
        "max_tokens": MaxTokens,
        "mean": MeanLength,
        "quantile": QuantileLength,
    }
    if true_tokens is not None:
        known["oracle"] = OracleLengths
    given = {"true_tokens": true_tokens}
    estimator: LengthEstimator = make_from_spec(
        spec, known, kind="length estimator", given=given
    )
    return estimator


class LengthErrors(NamedTuple):
    """Sums over answers to requests of one service class that had stop tokens.

    An answer that `max_tokens` ended counts with the length it has; a cancelled one
    does not count. Predictions are those made on arrival.
    """

    num_requests: int = 0
    sum_tokens: int = 0
    sum_predicted_tokens: int = 0
    sum_abs_error_tokens: int = 0

    def plus(self, other: "LengthErrors") -> "LengthErrors":
        """Returns the sums over both."""
        return LengthErrors(*map(sum, zip(self, other, strict=True)))

    def means(self) -> dict[str, float]:
        """Returns the number of requests and the means over them, for JSON."""
        return {
            "num_requests": self.num_requests,
            "mean_tokens": self.sum_tokens / self.num_requests,
            "mean_predicted_tokens": self.sum_predicted_tokens / self.num_requests,
            "mean_abs_error_tokens": self.sum_abs_error_tokens / self.num_requests,
        }


def pool_length_errors(
    engines: Iterable[Mapping[str, LengthErrors]],
) -> dict[str, LengthErrors]:
    """Returns the sums over several engines, by service class."""
    pooled: dict[str, LengthErrors] = collections.defaultdict(LengthErrors)
    for errors in engines:
        for name, one in errors.items():
            pooled[name] = pooled[name].plus(one)
    return dict(pooled)


class LengthBook:
    """Predicts answers on arrival, and has the estimator learn from those that ended.

    `errors` are predicted lengths against actual ones, by service class.
    """

    def __init__(self, estimator: LengthEstimator):
        self.errors = collections.defaultdict[str, LengthErrors](LengthErrors)
        self._estimator = estimator

    def enter(self, request: Request) -> None:
        """Predicts the answer to a request that is new."""
        request.predict(self._estimator.estimate(request))
        request.first_predicted_tokens = request.predicted_output_tokens

    def settle(self, request: Request) -> None:
        """Learns from a request that ended by a stop token or at `max_tokens`."""
        if request.stop_token_ids:  # else there was nothing to predict
            name, predicted = request.service_class, request.first_predicted_tokens
            tokens = len(request.output_tokens)
            one = LengthErrors(1, tokens, predicted, abs(tokens - predicted))
            self.errors[name] = self.errors[name].plus(one)
        self._estimator.update(request)
