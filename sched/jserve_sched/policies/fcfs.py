"""`fcfs`: first come, first served, with chunked prefill (see `in_order`).

Prompts go by arrival. Under KV pressure the latest arrival is preempted.
"""

import dataclasses

from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.in_order import FixedChunk, plan_in_order
from jserve_sched.steps.plan import StepPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstComeFirstServed(FixedChunk):
    """Running requests first, then waiting ones, each by arrival."""

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        return plan_in_order(
            view,
            lambda request: (request.arrival_s, request.request_id),
            chunk_tokens=self.chunk_tokens,
            ranks_waiting=False,
        )
