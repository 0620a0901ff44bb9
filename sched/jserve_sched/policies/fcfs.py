"""`fcfs`: first come, first served, with chunked prefill (see `in_order`).

Prompts go by arrival. Under KV pressure the latest arrival is preempted.
"""

import dataclasses

from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.in_order import InOrder
from jserve_sched.steps.plan import StepPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstComeFirstServed(InOrder):
    """Running requests first, then waiting ones, each by arrival."""

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        running = sorted(view.running, key=lambda one: (one.arrival_s, one.request_id))
        waiting = view.admissible[: view.most_offered]
        return self.plan_in_order(view, [*running, *waiting])
