"""`fcfs`: first come, first served, with chunked prefill.

All decodes go first; the rest of the step's token limit is filled with prompt
chunks in order of arrival (Sarathi-Serve, arXiv 2403.02310; vLLM's default).
Under KV pressure the latest arrival is preempted and recomputed.
"""

import dataclasses

from jserve_sched.builder import plan_in_order
from jserve_sched.plan import StepPlan
from jserve_sched.policies.base import check_chunk_tokens
from jserve_sched.request import Request
from jserve_sched.view import SchedulerView


def _arrival(request: Request) -> tuple[float, str]:
    return (request.arrival_s, request.request_id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstComeFirstServed:
    """Running requests first, then waiting ones, each by arrival.

    Attributes:
      chunk_tokens: tokens in a step, decodes included (Sarathi's chunk size), rounded
        down to whole blocks but at least one; 0 fills the step.
    """

    chunk_tokens: int = 0

    def __post_init__(self) -> None:
        check_chunk_tokens(self.chunk_tokens)

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        return plan_in_order(
            view, _arrival, chunk_tokens=self.chunk_tokens, ranks_waiting=False
        )
