"""How wrong predicted output lengths were, in sums: those of two engines add up."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LengthErrors:
    """Answers to requests of one service class that had stop tokens.

    Without these there is nothing to guess. One that `max_tokens` ended counts as it
    is, a cancelled one does not.

    Attributes:
      num_requests: how many.
      sum_tokens: of their lengths.
      sum_predicted_tokens: of the lengths predicted when they were submitted.
      sum_abs_error_tokens: of the differences between the two.
    """

    num_requests: int = 0
    sum_tokens: int = 0
    sum_predicted_tokens: int = 0
    sum_abs_error_tokens: int = 0

    def __add__(self, other: "LengthErrors") -> "LengthErrors":
        return LengthErrors(
            num_requests=self.num_requests + other.num_requests,
            sum_tokens=self.sum_tokens + other.sum_tokens,
            sum_predicted_tokens=self.sum_predicted_tokens + other.sum_predicted_tokens,
            sum_abs_error_tokens=self.sum_abs_error_tokens + other.sum_abs_error_tokens,
        )


def errors_of_one(tokens: int, predicted_tokens: int) -> LengthErrors:
    """Returns the sums over a single answer."""
    return LengthErrors(
        num_requests=1,
        sum_tokens=tokens,
        sum_predicted_tokens=predicted_tokens,
        sum_abs_error_tokens=abs(tokens - predicted_tokens),
    )


def pool_length_errors(
    engines: Iterable[Mapping[str, LengthErrors]],
) -> dict[str, LengthErrors]:
    """Returns the sums over several engines, by service class."""
    pooled: dict[str, LengthErrors] = collections.defaultdict(LengthErrors)
    for errors in engines:
        for name, one in errors.items():
            pooled[name] += one
    return dict(pooled)
