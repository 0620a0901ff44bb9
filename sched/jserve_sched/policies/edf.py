"""`edf`: earliest deadline first, with chunked prefill (Sarathi-EDF).

As `fcfs`, but prompts are taken by the deadline of their first token instead of
by arrival, whether partly prefilled or waiting; requests without
an objective come last, by arrival. Deadlines are token deadlines (SlidingServe Eq. 1,
arXiv 2606.05933), so under KV pressure the request whose next token is due last is
preempted and recomputed.
"""

import dataclasses

from jserve_sched.candidates import plan_in_order
from jserve_sched.plan import StepPlan
from jserve_sched.policies.base import FixedChunk
from jserve_sched.request import Request
from jserve_sched.view import SchedulerView


def _deadline(request: Request) -> tuple[float, float, str]:
    return (request.next_deadline_s, request.arrival_s, request.request_id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarliestDeadlineFirst(FixedChunk):
    """The request whose next token is due first goes first."""

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        return plan_in_order(view, _deadline, chunk_tokens=self.chunk_tokens)
