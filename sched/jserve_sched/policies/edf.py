"""`edf`: earliest deadline first, with chunked prefill (Sarathi-EDF; see `in_order`).

Prompts go by the time at which their first token is wanted, whether partly computed or
waiting; those without an objective come last, by arrival. Token deadlines are those of
SlidingServe (Eq. 1, arXiv 2606.05933), and a completion bound is spread over the tokens
(`Slo.pacing`). Under KV pressure the request whose next token is wanted last is
preempted.
"""

import dataclasses

import numpy as np

from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.in_order import InOrder, first_waiting
from jserve_sched.requests.facts import Facts
from jserve_sched.requests.request import Request
from jserve_sched.steps.plan import StepPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarliestDeadlineFirst(InOrder):
    """The request whose next token is wanted first goes first."""

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        waiting = first_waiting(view, view.facts.pace_s)
        requests = (*view.running, *waiting.requests)
        return self.plan_in_order(view, sorted(requests, key=_by_pace))

    def key(self, view: SchedulerView, facts: Facts) -> np.ndarray:
        """Returns when tokens are wanted."""
        return facts.pace_s


def _by_pace(request: Request) -> tuple[float, float, str]:
    return (request.pace_s, request.arrival_s, request.request_id)
