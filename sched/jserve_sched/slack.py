"""Slack: how long each decoding request can wait for its next token.

`M` is the number of decodes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jserve_sched.request import Request


@dataclasses.dataclass(frozen=True)
class DecodeSlack:
    """Slack of decoding requests, seconds from the start of the step.

    Attributes:
      next_s: `[M]` until the next token is wanted: s_i (SlidingServe Eq. 1).
      after_s: `[M]` until the one after it is wanted: s_i + L^tbt_i.
    """

    next_s: np.ndarray
    after_s: np.ndarray

    def tightest(self, least_s: float) -> tuple[float, float]:
        """Returns T_cur and T_next (SlidingServe Eq. 14 and 15), infinite if free.

        The paper does not say which decodes are protected (D_safe). Here: those
        whose next token can still be in time, `s_i >= least_s`. A late one would
        stop all prefill without becoming less late.

        `least_s` is the duration of the step with no prefill in it.
        """
        safe = self.next_s >= least_s
        if not safe.any():
            return np.inf, np.inf
        current_s = float(self.next_s[safe].min())
        if np.isinf(current_s):
            return np.inf, np.inf
        return current_s, float(self.after_s[safe].min()) - current_s


def decode_slack(decodes: Sequence[Request], start_s: float) -> DecodeSlack:
    """Returns the slack of each decode."""
    rows = []
    for request in decodes:
        pacing = request.pacing
        index = len(request.output_tokens) + request.num_pending
        after_s = pacing.start_s + (min(index, pacing.last) + 1) * pacing.gap_s
        rows.append((after_s - pacing.gap_s if index else pacing.first_s, after_s))
    dues = np.array(rows, np.float64).reshape(-1, 2) - start_s
    return DecodeSlack(dues[:, 0], dues[:, 1])
