"""`sjf`: shortest job first, with chunked prefill.

As `fcfs`, but the prompt with the fewest tokens left comes first: the best order for
mean latency where all are equal, and the one that starves the long. Objectives are
not looked at. A prompt's length stands for the job's: how long its answer will be is
not known. Under KV pressure the request with most tokens left is preempted.
"""

import dataclasses

from jserve_sched.builder import plan_in_order
from jserve_sched.plan import StepPlan
from jserve_sched.policies.base import check_chunk_tokens
from jserve_sched.request import Request
from jserve_sched.view import SchedulerView


def _tokens_left(request: Request) -> tuple[int, float, str]:
    return (request.num_remaining, request.arrival_s, request.request_id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortestJobFirst:
    """The request with the fewest prompt tokens left goes first.

    Attributes:
      chunk_tokens: tokens in a step, decodes included (Sarathi's chunk size), rounded
        down to whole blocks but at least one; 0 fills the step.
    """

    chunk_tokens: int = 0

    def __post_init__(self) -> None:
        check_chunk_tokens(self.chunk_tokens)

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        return plan_in_order(view, _tokens_left, chunk_tokens=self.chunk_tokens)
