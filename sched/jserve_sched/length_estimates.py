"""How long will an answer be? Estimators of output lengths, by name and options.

max_tokens                         as long as it may be
mean                               the mean of the answers to requests like it
gaussian:seed=1                    a draw about that mean, its own for each request
quantile:q=0.75                    so long that a share q of them is no longer
...:least=8:memory=512             answers before they are believed; most remembered

The one idea: promises are kept by these guesses, so they are conservative until there
is evidence. Where too few answers of a kind are known its class is asked, then all, and
at last `max_tokens`. A request without stop tokens leaves nothing to guess: its answer
has `max_tokens`.

The paper on scheduling by simulated annealing (arXiv 2504.14966) plans with predicted
lengths; how it predicts them is not known to us. All estimators here are ours.
"""

import dataclasses
import hashlib
import statistics
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from jserve_sched.length_history import LengthGroups, Summary
from jserve_sched.request import Request
from jserve_sched.spec_options import make_from_spec

_NORMAL = statistics.NormalDist()
_LEAST = 8  # waiting for 16 or 32 costs more than believing 8 does: on four traces
_MEMORY = 512


class LengthEstimator(Protocol):
    """Says how long an answer should be, and learns from those that ended."""

    def estimate(self, request: Request) -> int:
        """Returns the length of the whole answer in tokens, 1 to `max_tokens`.

        The same for the same request until the next `update`.
        """
        ...

    def update(self, request: Request) -> bool:
        """Learns from a request that has just ended, by a stop token or `max_tokens`.

        Returns:
          Whether waiting requests should be estimated anew. True is rare.
        """
        ...


def _whole(tokens: float, request: Request) -> int:
    return min(max(round(tokens), 1), request.max_tokens)


def _guess(groups: LengthGroups, request: Request, num_spreads: float = 0.0) -> int:
    """Returns a length so many spreads above the centre; without one, the longest."""
    summary = groups.find(request) if request.stop_token_ids else None
    if summary is None:
        return request.max_tokens
    return _whole(summary.centre + num_spreads * summary.spread, request)


def _point(seed: int, request: Request) -> int:
    """Returns a number of 64 bits that looks random, always the same for a request."""
    name = f"{seed}:{request.request_id}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


@dataclasses.dataclass(frozen=True)
class MaxTokens:
    """Every answer is as long as it may be."""

    def estimate(self, request: Request) -> int:
        """Returns `max_tokens`."""
        return request.max_tokens

    def update(self, request: Request) -> bool:
        """Learns nothing."""
        del request
        return False


def _mean_and_deviation(tokens: np.ndarray, shares: np.ndarray) -> Summary:
    mean = float(tokens @ shares)
    return Summary(mean, float(np.sqrt((tokens - mean) ** 2 @ shares)))


@dataclasses.dataclass(eq=False, kw_only=True)
class MeanLength:
    """The mean of the answers to requests like it.

    Attributes:
      least: answers of a kind before they are believed.
      memory: most answers of a kind that are remembered.
    """

    least: int = _LEAST
    memory: int = _MEMORY

    def __post_init__(self) -> None:
        self._groups = LengthGroups(
            _mean_and_deviation, least=self.least, memory=self.memory
        )

    def estimate(self, request: Request) -> int:
        """Returns the mean."""
        return _guess(self._groups, request)

    def update(self, request: Request) -> bool:
        """Learns from a request that ended."""
        return self._groups.learn(request)


@dataclasses.dataclass(eq=False, kw_only=True)
class GaussianLength:
    """A draw from a normal distribution about the mean.

    Each request keeps its draw: its estimate changes only when what is known does.

    Attributes:
      least: answers of a kind before they are believed.
      memory: most answers of a kind that are remembered.
      seed: with the request's id, decides its draw.
    """

    least: int = _LEAST
    memory: int = _MEMORY
    seed: int = 0

    def __post_init__(self) -> None:
        self._groups = LengthGroups(
            _mean_and_deviation, least=self.least, memory=self.memory
        )

    def estimate(self, request: Request) -> int:
        """Returns the mean plus the request's own number of deviations."""
        point = (_point(self.seed, request) + 0.5) / 2**64
        deviations = _NORMAL.inv_cdf(min(point, 1 - 2**-53))
        return _guess(self._groups, request, deviations)

    def update(self, request: Request) -> bool:
        """Learns from a request that ended."""
        return self._groups.learn(request)


@dataclasses.dataclass(eq=False, kw_only=True)
class QuantileLength:
    """A quantile of the answers to requests like it.

    Attributes:
      q: share of answers that should be no longer, between 0 and 1.
      least: answers of a kind before they are believed.
      memory: most answers of a kind that are remembered.
    """

    q: float = 0.75
    least: int = _LEAST
    memory: int = _MEMORY

    def __post_init__(self) -> None:
        if not 0 < self.q < 1:
            raise ValueError(f"q={self.q} is not between 0 and 1")
        self._groups = LengthGroups(
            self._quantile, least=self.least, memory=self.memory
        )

    def _quantile(self, tokens: np.ndarray, shares: np.ndarray) -> Summary:
        place = int(np.searchsorted(np.cumsum(shares), self.q))
        return Summary(float(tokens[min(place, len(tokens) - 1)]), 0.0)

    def estimate(self, request: Request) -> int:
        """Returns the quantile."""
        return _guess(self._groups, request)

    def update(self, request: Request) -> bool:
        """Learns from a request that ended."""
        return self._groups.learn(request)


class OracleLengths:
    """The truth, or the truth with an error of a known size. For studies.

    With `error` e a length is off by a share drawn evenly from -e to e; with `factor` f
    it is f times too long or f times too short, by the toss of a coin. Seed and request
    id decide both.
    """

    def __init__(
        self,
        true_tokens: Mapping[str, int],
        *,
        error: float = 0.0,
        factor: float = 1.0,
        seed: int = 0,
    ):
        """Makes an oracle.

        Args:
          true_tokens: each answer's length in tokens, by request id.
          error: largest relative error, 0 to 1.
          factor: by how much each is wrong, 1 or more.
          seed: of the errors.

        Raises:
          ValueError: if an error is out of range.
        """
        if not 0 <= error <= 1:
            raise ValueError(f"error={error} is not in 0..1")
        if not 1 <= factor < float("inf"):
            raise ValueError(f"factor={factor} is not a finite number from 1")
        self._true_tokens = true_tokens
        self._error = error
        self._factor = factor
        self._seed = seed

    def estimate(self, request: Request) -> int:
        """Returns the true length, made wrong.

        Raises:
          KeyError: if the request's truth is not known.
        """
        tokens = float(self._true_tokens[request.request_id])
        if self._error or self._factor != 1:
            point = _point(self._seed, request)
            tokens *= 1 + self._error * (2 * (point >> 1) / 2**63 - 1)
            tokens *= self._factor if point % 2 else 1 / self._factor
        return _whole(tokens, request)

    def update(self, request: Request) -> bool:
        """Learns nothing."""
        del request
        return False


LENGTH_ESTIMATORS: dict[str, type[LengthEstimator]] = {
    "max_tokens": MaxTokens,
    "mean": MeanLength,
    "gaussian": GaussianLength,
    "quantile": QuantileLength,
}


def make_length_estimator(spec: str) -> LengthEstimator:
    """Returns the estimator that `name:option=value:...` describes, new and untaught.

    Raises:
      ValueError: if the estimator or an option is unknown, or a value is no good.
    """
    estimator: LengthEstimator = make_from_spec(
        spec, LENGTH_ESTIMATORS, kind="length estimator"
    )
    return estimator
