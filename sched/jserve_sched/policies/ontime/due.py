"""Due times of prompts, and how long decodes can wait.

A completion bound becomes one due time of the prompt: the answer's other tokens, one a
step, must fit behind it. At most half of the bound is kept for them, since lengths are
guesses. A decode with a completion bound can wait for an even share of what is left.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jserve_sched.requests.facts import Facts
from jserve_sched.requests.request import Request

_LEAST_PACE = 0.6  # of a usual step: a decode that needs shorter ones is not waited for


def due_s(prompts: Facts, step_s: float) -> np.ndarray:
    """Returns `[P]` when prompts must be computed, clock seconds.

    `step_s` is the time of one token of an answer.
    """
    bound_s = np.where(np.isfinite(prompts.end_s), prompts.end_s - prompts.arrival_s, 0)
    rest_s = np.minimum((prompts.answer_tokens - 1.0) * step_s, bound_s / 2)
    found: np.ndarray = np.minimum(prompts.deadline_s, prompts.end_s - rest_s)
    return found


class DecodeSlack(NamedTuple):
    """How long decodes can wait.

    Attributes:
      slack_s: `[D]` until the next token is due, seconds.
      gap_s: `[D]` between the tokens of each, seconds.
      step_s: Longest that steps can usually be.
    """

    slack_s: np.ndarray
    gap_s: np.ndarray
    step_s: float


def decode_slack(
    decodes: Iterable[Request], *, start_s: float, least_s: float, step_s: float
) -> DecodeSlack:
    """Returns the slack of those decodes that can still be in time.

    Args:
      start_s: Start of the step, clock seconds.
      least_s: Duration of a step without prefill.
      step_s: Longest that a step should be for other reasons.
    """
    tightest_s = min((one.slo.tbt_s or np.inf for one in decodes), default=np.inf)
    step_s = max(min(step_s, tightest_s), 1.05 * least_s)
    rows: list[tuple[float, float]] = []
    for one in decodes:
        slack_s, gap_s = one.deadline_s - start_s, one.slo.tbt_s or np.inf
        if one.slo.ttlt_s is not None:
            left_s = one.arrival_s + one.slo.ttlt_s - start_s
            pace_s = left_s / one.expected_tokens_left
            if pace_s < _LEAST_PACE * step_s:
                continue
            slack_s, gap_s = min(slack_s, pace_s), min(gap_s, pace_s)
        if least_s <= slack_s < np.inf:
            rows.append((slack_s, gap_s))
    slacks_s, gaps_s = np.array(rows, np.float64).reshape(-1, 2).T
    return DecodeSlack(slacks_s, gaps_s, step_s)
