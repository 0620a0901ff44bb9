"""`annealing+sliding`: a searched plan says who, SlidingServe's chunker says how much.

The combination is ours. The queue is ordered and capped as in `annealing` (see
`planned_admission`); prompts partly computed come first, by admission. How much of them
a step holds is decided as in `sliding`: by the slack of the decodes, and by what late
arrivals may want. SlidingServe's constructor, which selects prompts out of turn, stays
off: in simulation it kept no more promises, and it would break the bound on age.
"""

import dataclasses
import functools

from jserve_sched.chunker import Objective, Search
from jserve_sched.plan import StepPlan
from jserve_sched.policies.planned_admission import PlanModel, PlannedAdmission
from jserve_sched.policies.sliding import SlidingServe
from jserve_sched.view import SchedulerView


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnealingSliding(PlannedAdmission):
    """Simulated annealing orders the queue; SlidingServe sizes the steps.

    Attributes:
      model: as there, but "stream": with even chunks it does better than "batches".
      reserve: as in `sliding`.
      cautious: as in `sliding`.
      objective: as in `sliding`.
      search: as in `sliding`.
    """

    model: PlanModel = "stream"
    reserve: bool = True
    cautious: bool = True
    objective: Objective = "tokens"
    search: Search = "edges"

    @functools.cached_property
    def _sliding(self) -> SlidingServe:
        return SlidingServe(
            sorter="given",
            constructor=False,
            reserve=self.reserve,
            cautious=self.cautious,
            objective=self.objective,
            search=self.search,
        )

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        return self._sliding.plan_for(view, self.candidates(view))
