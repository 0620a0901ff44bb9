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

_NO_GAP_S = 1e6  # that is, no bound; times 0 tokens it is 0


def usual_step_s(decodes: Iterable[Request], *, least_s: float, most_s: float) -> float:
    """Returns how long steps can usually be beside these decodes, seconds.

    A step without prefill takes `least_s`; none should take more than `most_s`.
    """
    tightest_s = min((one.slo.tbt_s or np.inf for one in decodes), default=np.inf)
    return max(min(most_s, tightest_s), 1.05 * least_s)


def due_s(prompts: Facts, step_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns when prompts must be computed, and the steps that answers need beside.

    Returns:
      `[P]` clock seconds; and `[P]` how many more steps than one each `step_s`, the
      time of a token, an answer with a completion bound then needs.
    """
    bound_s = np.where(np.isfinite(prompts.end_s), prompts.end_s - prompts.arrival_s, 0)
    answer_s = (prompts.answer_tokens - 1.0) * step_s
    rest_s = np.minimum(answer_s, bound_s / 2)
    more = np.where(bound_s > 0, answer_s - rest_s, 0.0) / step_s
    return np.minimum(prompts.deadline_s, prompts.end_s - rest_s), more


def guessed_tokens(prompts: Facts) -> np.ndarray:
    """Returns `[P]` prompt tokens where a completion bound meets a guessed length.

    Such prompts go the shortest first: one that is computed just in time is late if its
    answer is longer than guessed, so most of them should be early.
    """
    may_stop = [bool(one.stop_token_ids) for one in prompts.requests]
    return np.where(np.isfinite(prompts.end_s) & may_stop, prompts.tokens, 0.0)


class DecodeSlack(NamedTuple):
    """How long decodes can wait until the next token, of those waited for, `[D]`."""

    slack_s: np.ndarray
    gap_s: np.ndarray
    num_outputs: np.ndarray


def decode_slack(
    decodes: Iterable[Request],
    *,
    start_s: float,
    least_s: float,
    step_s: float,
    lost_per_s: float,
) -> DecodeSlack:
    """Returns the slack of those decodes that can still be in time.

    One that needs shorter steps than `step_s`, as is usual, for its completion bound
    costs prefill, and is not waited for if more than one prompt would be lost for it.
    """
    rows: list[tuple[float, float, int]] = []
    for one in decodes:
        slack_s, gap_s = one.deadline_s - start_s, one.slo.tbt_s or _NO_GAP_S
        if one.slo.ttlt_s is not None:
            left_s = one.arrival_s + one.slo.ttlt_s - start_s
            tokens = one.expected_tokens_left
            if (tokens - left_s / step_s) * least_s * lost_per_s > 1.0:
                continue
            slack_s, gap_s = min(slack_s, left_s / tokens), min(gap_s, left_s / tokens)
        if least_s <= slack_s < np.inf:
            rows.append((slack_s, gap_s, one.num_outputs_projected))
    return DecodeSlack(*np.array(rows, np.float64).reshape(-1, 3).T)
