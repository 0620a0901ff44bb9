"""`fcfs`: first come, first served, with chunked prefill.

All decodes go first; the rest of the step's token limit is filled with prompt
chunks in order of arrival (Sarathi-Serve, arXiv 2403.02310; vLLM's default).
Under KV pressure the latest arrival is preempted and recomputed.
"""

import dataclasses

from jserve_sched.candidates import plan_in_order
from jserve_sched.plan import StepPlan
from jserve_sched.policies.base import FixedChunk
from jserve_sched.request import Request
from jserve_sched.view import SchedulerView


def _arrival(request: Request) -> tuple[float, str]:
    return (request.arrival_s, request.request_id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstComeFirstServed(FixedChunk):
    """Running requests first, then waiting ones, each by arrival."""

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        return plan_in_order(
            view, _arrival, chunk_tokens=self.chunk_tokens, ranks_waiting=False
        )
