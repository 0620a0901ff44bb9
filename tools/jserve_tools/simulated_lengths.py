"""Output lengths in a simulation, where the truth is known.

A request can declare that it takes more than it does, as real ones do, and an estimate
can be as wrong as a study wants it.
"""

import dataclasses
from collections.abc import Sequence

from jserve_sched.output_lengths import LengthEstimator, make_length_estimator
from jserve_sched.workload import Arrival

NO_ESTIMATES = "max_tokens"  # what each request declares is taken for its length


def make_lengths(spec: str, arrivals: Sequence[Arrival]) -> LengthEstimator:
    """Returns a fresh estimator; an `oracle` knows the lengths of these arrivals.

    Raises:
      ValueError: If the estimator or an option is unknown, or a value is invalid.
    """
    return make_length_estimator(
        spec, {one.request_id: one.max_tokens for one in arrivals}
    )


def declare(
    arrivals: Sequence[Arrival], declared_tokens: int, *, max_model_len: int
) -> list[Arrival]:
    """Returns requests that say how many output tokens they take at most.

    Args:
      arrivals: The requests.
      declared_tokens: What each says; more if it takes more, and no more than the
        context has room for.
      max_model_len: The longest context.
    """
    return [
        dataclasses.replace(
            one,
            declared_max_tokens=max(
                min(declared_tokens, max_model_len - one.num_prompt_tokens),
                one.max_tokens,
            ),
        )
        for one in arrivals
    ]
