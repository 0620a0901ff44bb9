"""What a policy is: a pure function from a snapshot to a plan."""

from typing import Protocol

from jserve_sched.plan import StepPlan
from jserve_sched.view import SchedulerView


class Policy(Protocol):
    """Decides what one step runs."""

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step; None if nothing can run now.

        Pure: the same snapshot gives the same plan, and nothing is changed.
        """
        ...
