"""`laxity`: least laxity first, with chunked prefill.

As `edf`, but requests go by how long they could still wait for their deadline: their
laxity, the time to the deadline less the predicted time still needed. A long prompt or
a long answer must start sooner than a short one due at the same time. The rule is an
old one of real-time scheduling, and MindIE documents it for the choice between a
prefill and a decode step; this form of it is ours:

* The next token's deadline needs the rest of the prompt, computed alone, or one decode
  step; a completion bound needs that and the expected rest of the answer, decoded
  beside all that run now. With both, the lesser laxity counts.
* A prompt that was partly computed, or is partly shared, is priced as a prompt of the
  tokens left.
* A request with a laxity below 0 will be late whatever is done. These go behind all
  others, by arrival, so that one lost request does not make the next one late too; a
  guarded request stays where its laxity puts it.
* A request without an SLO has infinite laxity: before the late, after all others.
"""

import dataclasses
import sys

import numpy as np

from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.in_order import InOrder
from jserve_sched.requests.facts import Facts

_NEVER_S = sys.float_info.max  # the laxity without an SLO: before the late


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastLaxityFirst(InOrder):
    """The request that can wait the shortest goes first."""

    def key(self, view: SchedulerView, facts: Facts) -> np.ndarray:
        """Returns the laxity of requests, seconds; infinite of those that are lost."""
        wait_s = laxities_s(view, facts)
        is_lost = (wait_s < 0.0) & (facts.guard == 0.0)
        return np.where(is_lost, np.inf, np.minimum(wait_s, _NEVER_S))


def laxities_s(view: SchedulerView, facts: Facts) -> np.ndarray:
    """Returns how long each of the view's requests could wait and attain its SLO.

    Returns:
      `[N]` seconds from `view.start_s` on.
    """
    latency = view.latency
    is_decode = (facts.is_running > 0.0) & (facts.tokens == 1.0)
    alone, together = np.ones(1), np.full(1, max(len(view.running), 1.0))
    next_s = np.where(
        is_decode,
        latency.decode_s(together, facts.known_tokens, np.full(1, 2.0)),
        latency.prefill.of(alone, facts.tokens),
    )
    rest_s = latency.decode_s(together, facts.known_tokens, facts.answer_tokens)
    wait_s: np.ndarray = np.minimum(
        facts.deadline_s - next_s, facts.end_s - next_s - rest_s
    )
    return wait_s - view.start_s
