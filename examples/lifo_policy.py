"""A policy of your own: last come, first served.

jserve --policy=examples.lifo_policy.LastComeFirstServed
jserve-simulate --qps=7 --policies=fcfs,examples.lifo_policy.LastComeFirstServed
"""

from jserve_sched.planning import Candidates, PlanBuilder, SchedulerView
from jserve_sched.steps import StepPlan


class LastComeFirstServed:
    """Decodes, then the prompts that have begun, then the newest that wait."""

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step; None if nothing can run now."""
        builder = PlanBuilder(view)
        candidates = Candidates(view, view.admissible[::-1])
        candidates.add_decodes(builder)
        candidates.add_prompts(builder, candidates.prompts)
        return builder.build()
