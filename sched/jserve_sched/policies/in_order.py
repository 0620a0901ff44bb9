"""Chunked prefill in a fixed order: what `fcfs`, `edf`, `sjf` and `laxity` share.

All decodes go first; the rest of the step's token limit is filled with prompt chunks
(Sarathi-Serve, arXiv 2403.02310; vLLM's default).
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from jserve_sched.planning.builder import PlanBuilder
from jserve_sched.planning.candidates import Candidates
from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.request import Request, RequestState
from jserve_sched.steps.plan import StepPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class InOrder:
    """A policy whose steps have a fixed size and take requests in an order.

    Attributes:
      chunk_tokens: Tokens in a step, decodes included (Sarathi's chunk size), rounded
        down to whole blocks but at least one; 0 fills the step.
    """

    chunk_tokens: int = 0

    def __post_init__(self) -> None:
        if self.chunk_tokens < 0:
            raise ValueError(f"chunk_tokens={self.chunk_tokens} is below 0")

    def plan_in_order(
        self, view: SchedulerView, ordered: Sequence[Request]
    ) -> StepPlan | None:
        """Plans all decodes first, then prefill blocks in order until nothing fits.

        Args:
          ordered: All running and all admissible requests; of the running ones the last
            is preempted first.
        """
        builder = PlanBuilder(view)
        running = [one for one in ordered if one.state is RequestState.RUNNING]
        candidates = Candidates(view, view.admissible, running=running)
        candidates.add_decodes(builder)
        builder.limit_tokens(self.chunk_tokens)
        decodes = {id(request) for request in candidates.decodes}
        prompts = [one for one in ordered if id(one) not in decodes]
        candidates.add_prompts(builder, prompts)
        return builder.build()


def column(values: Iterable[float]) -> np.ndarray:
    """Returns `[N]` float64."""
    return np.fromiter(values, np.float64)


def sort_by(requests: Sequence[Request], *keys: np.ndarray) -> list[Request]:
    """Returns requests by keys `[N]`, of which the last one counts most."""
    return [requests[place] for place in np.lexsort(keys).tolist()]
