"""Service level objectives, and the deadlines that follow from them.

Every deadline is anchored at *arrival*, so that a request which runs ahead banks slack
that the scheduler may spend on others (SlidingServe, arXiv 2606.05933, Eq. 1).
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import NamedTuple


def check_bound(name: str, value: float | None) -> None:
    """Raises ValueError unless a bound is positive and finite, or absent."""
    if value is not None and not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number above 0, got {value}")


class Pacing(NamedTuple):
    """When a request's output tokens are wanted, in clock seconds.

    A token that comes later than this may still be in time: see `Slo.deadline_s`.

    Attributes:
      first_s: Time of the first token; infinite without an objective for it.
      start_s: Token k >= 1 is wanted at `start_s + k * gap_s`.
      last: Later tokens are wanted when this one is: the bound allows no more, and the
        answer was not expected to be longer.
    """

    first_s: float
    start_s: float
    gap_s: float
    last: float = math.inf

    def pace_s(self, index: int) -> float:
        """Returns when output token `index` (from 0) is wanted."""
        if not index:
            return self.first_s
        return self.start_s + min(index, self.last) * self.gap_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slo:
    """The objectives of one request; a bound of None sets no objective.

    Attributes:
      ttft_s: Bound on time to first token, seconds from arrival.
      tbt_s: Bound on time between tokens: token k (from 0) is due at
        `arrival + ttft_s + k * tbt_s` (SlidingServe Eq. 1).
      ttlt_s: Bound on time to last token, seconds from arrival.

    Raises:
      ValueError: If a bound is not positive and finite, or `tbt_s` lacks a `ttft_s`.
    """

    ttft_s: float | None = None
    tbt_s: float | None = None
    ttlt_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tbt_s", "ttlt_s"):
            check_bound(name, getattr(self, name))
        if self.tbt_s is not None and self.ttft_s is None:
            raise ValueError(
                f"tbt_s={self.tbt_s} needs ttft_s: token deadlines start there"
            )

    @property
    def is_best_effort(self) -> bool:
        """Whether there is no objective."""
        return self.ttft_s is None and self.ttlt_s is None

    def deadline_s(self, arrival_s: float, index: int) -> float:
        """Returns after when output token `index`, from 0, violates a bound."""
        due_s = math.inf
        if self.ttft_s is not None and (not index or self.tbt_s is not None):
            due_s = arrival_s + self.ttft_s + index * (self.tbt_s or 0.0)
        if self.ttlt_s is not None:
            due_s = min(due_s, arrival_s + self.ttlt_s)
        return due_s

    def pacing(self, arrival_s: float, num_tokens: int) -> Pacing:
        """Returns when a scheduler should want each of `num_tokens` output tokens.

        With a `tbt_s` these are the token deadlines, faster only if the last one
        would come after `ttlt_s`. A `ttlt_s` without a `tbt_s` is spread: the first
        token is wanted at half of that time (or at `ttft_s`), the others evenly from
        half to the end, so that neither the prompt nor the decoding is left for the
        last moment. (Ours; QoServe's artifact paces by a fixed 0.4 s a token, which
        fits one machine.) An answer that grows longer than expected is always taken to
        end with its next token: no token is wanted after `ttlt_s`, and none sooner than
        the last one expected.
        """
        gaps = max(num_tokens - 1, 1)
        first_s = arrival_s + (math.inf if self.ttft_s is None else self.ttft_s)
        if self.ttlt_s is None:
            if self.tbt_s is None:
                return Pacing(first_s, math.inf, 0.0)
            return Pacing(first_s, first_s, self.tbt_s)
        end_s = arrival_s + self.ttlt_s
        if self.tbt_s is not None:
            first_s = min(first_s, end_s)
            left_s = end_s - first_s
            if self.tbt_s >= left_s / gaps:
                return Pacing(first_s, first_s, left_s / gaps, last=gaps)
            last = max(int(left_s / self.tbt_s), gaps)
            return Pacing(first_s, first_s, self.tbt_s, last=last)
        half_s = self.ttlt_s / 2
        start_s = arrival_s + half_s
        return Pacing(min(first_s, start_s), start_s, half_s / gaps, gaps)

    def is_attained(
        self, arrival_s: float, token_times_s: Sequence[float], *, is_complete: bool
    ) -> bool:
        """Returns whether every objective was attained.

        Args:
          token_times_s: Time of each output token, ascending.
          is_complete: Whether the request ran to its own end. An incomplete
            request (refused, failed, cut off) has violated its objectives; with
            no objective it has violated nothing.
        """
        if self.is_best_effort:
            return True
        if not is_complete or not token_times_s:
            return False
        return all(
            time_s <= self.deadline_s(arrival_s, index)
            for index, time_s in enumerate(token_times_s)
        )
