"""Slack: how long the decoding requests can wait for their next tokens."""

from collections.abc import Sequence

import numpy as np

from jserve_sched.request import Request


def tightest_slack(
    decodes: Sequence[Request], *, start_s: float, least_s: float
) -> tuple[float, float]:
    """Returns T_cur and T_next (SlidingServe Eq. 14 and 15), seconds; infinite if free.

    The paper does not say which decodes are protected (D_safe). Here: those
    whose next token can still be in time, `s_i >= least_s`. A late one would
    stop all prefill without becoming less late.

    Args:
      decodes: Running requests with one token to compute.
      start_s: When the step starts, clock seconds.
      least_s: Duration of the step with no prefill in it, seconds.
    """
    rows = []
    for request in decodes:
        pacing = request.pacing
        index = len(request.output_tokens) + request.num_pending
        after_s = pacing.start_s + (min(index, pacing.last) + 1) * pacing.gap_s
        rows.append((after_s - pacing.gap_s if index else pacing.first_s, after_s))
    # s_i (Eq. 1), and s_i + L^tbt_i: until the next token is wanted, and the one after.
    next_s, after_s = (np.array(rows, np.float64).reshape(-1, 2) - start_s).T
    safe = next_s >= least_s
    current_s = float(next_s[safe].min(initial=np.inf))
    if np.isinf(current_s):
        return np.inf, np.inf
    return current_s, float(after_s[safe].min()) - current_s
