"""`annealing`: admission by a searched plan, on top of chunked prefill.

The plan follows "SLO-Aware Scheduling for Large Language Model Inferences" (arXiv
2504.14966) as far as that is known; see `planned_admission` for what is ours. A step
is as `fcfs` fills it: all decodes go first, then prompts partly computed, by admission,
then whoever is let in, in the planned turn.
"""

import dataclasses

from jserve_sched.builder import PlanBuilder
from jserve_sched.plan import StepPlan
from jserve_sched.policies.base import check_chunk_tokens
from jserve_sched.policies.planned_admission import PlannedAdmission
from jserve_sched.view import SchedulerView


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annealing(PlannedAdmission):
    """Simulated annealing orders the queue; steps are filled.

    Attributes:
      chunk_tokens: tokens in a step, decodes included (Sarathi's chunk size), rounded
        down to whole blocks but at least one; 0 fills the step.
    """

    chunk_tokens: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_chunk_tokens(self.chunk_tokens)

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        candidates = self.candidates(view)
        builder = PlanBuilder(view)
        candidates.add_decodes(builder)
        builder.limit_tokens(self.chunk_tokens)
        candidates.add_prompts(builder, candidates.prompts)
        return builder.build()
