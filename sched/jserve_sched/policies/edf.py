"""`edf`: earliest deadline first, with chunked prefill (Sarathi-EDF; see `in_order`).

Requests go by the time at which their next token is wanted; those without an objective
come last, by arrival. Token deadlines are those of SlidingServe (Eq. 1, arXiv
2606.05933), and a completion bound is spread over the tokens (`Slo.pacing`).
"""

import dataclasses

import numpy as np

from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.in_order import InOrder
from jserve_sched.requests.facts import Facts


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarliestDeadlineFirst(InOrder):
    """The request whose next token is wanted first goes first."""

    def key(self, view: SchedulerView, facts: Facts) -> np.ndarray:
        """Returns when tokens are wanted."""
        return facts.pace_s
