"""Output lengths in a simulation: what requests declare, and what is guessed of them.

The one idea: how long an answer gets is known here, so a request can say that it takes
more than it does, as real ones do, and a guess can be as wrong as a study wants it.
"""

import dataclasses
from collections.abc import Sequence

from jserve_sched.length_estimates import (
    LENGTH_ESTIMATORS,
    LengthEstimator,
    OracleLengths,
    make_length_estimator,
)
from jserve_sched.spec_options import make_from_spec
from jserve_sched.workload import Arrival

NO_ESTIMATES = "max_tokens"  # what each request declares is taken for its length


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Oracle:
    """The options of `OracleLengths`, under its names."""

    error: float = 0.0
    factor: float = 1.0
    seed: int = 0


def make_lengths(spec: str, arrivals: Sequence[Arrival]) -> LengthEstimator:
    """Returns a fresh estimator.

    Args:
      spec: one of `LENGTH_ESTIMATORS`, or `oracle`, with options as in
        `oracle:error=0.5`.
      arrivals: whose lengths the oracle knows.

    Raises:
      ValueError: if the estimator or an option is unknown, or a value is no good.
    """
    name = spec.partition(":")[0]
    if name == "oracle":
        options = make_from_spec(spec, {name: _Oracle}, kind="length estimator")
        truth = {one.request_id: one.max_tokens for one in arrivals}
        return OracleLengths(truth, **dataclasses.asdict(options))
    if name not in LENGTH_ESTIMATORS:
        known = sorted([*LENGTH_ESTIMATORS, "oracle"])
        raise ValueError(f"length estimator {name!r} is unknown; known: {known}")
    return make_length_estimator(spec)


def declare(
    arrivals: Sequence[Arrival], declared_tokens: int, *, max_model_len: int
) -> list[Arrival]:
    """Returns requests that say how many output tokens they take at most.

    Args:
      arrivals: the requests.
      declared_tokens: what each says; more if it takes more, and no more than the
        context has room for.
      max_model_len: the longest context.
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
