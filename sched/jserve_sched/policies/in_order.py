"""Chunked prefill in a fixed order: what `fcfs`, `edf`, `sjf` and `laxity` share.

All decodes go first; the rest of the step's token limit is filled with prompt chunks
(Sarathi-Serve, arXiv 2403.02310; vLLM's default).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jserve_sched.planning.builder import PlanBuilder
from jserve_sched.planning.candidates import Candidates
from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.request import Request
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

    def plan_by(
        self,
        view: SchedulerView,
        key: Callable[[Request], Any],
        *,
        ranks_waiting: bool = True,
    ) -> StepPlan | None:
        """Plans all decodes first, then prefill blocks in order until nothing fits.

        Args:
          key: Order of requests, least first; of running requests the last is
            preempted first.
          ranks_waiting: Whether waiting prompts are ordered among those partly
            computed; otherwise they come after them, by arrival.
        """
        builder = PlanBuilder(view)
        running = sorted(view.running, key=key)
        candidates = Candidates(view, view.admissible, running=running)
        candidates.add_decodes(builder)
        builder.limit_tokens(self.chunk_tokens)
        prompts = candidates.prompts
        ordered = sorted(prompts, key=key) if ranks_waiting else prompts
        candidates.add_prompts(builder, ordered)
        return builder.build()


def ranked(requests: Sequence[Request], *keys: np.ndarray) -> Callable[[Request], int]:
    """Returns a key by arrays `[N]` of these requests' keys, the last one first."""
    order = np.lexsort(keys).tolist()
    rank = {requests[index].request_id: place for place, index in enumerate(order)}
    return lambda request: rank[request.request_id]
