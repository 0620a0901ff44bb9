"""What a policy is: it decides what each step of one engine runs."""

import dataclasses
from typing import Protocol

from jserve_sched.planning.view import SchedulerView
from jserve_sched.steps.plan import StepPlan


class Policy(Protocol):
    """Decides what one step runs.

    An object serves one scheduler, since it may remember what it saw. It is
    deterministic: two new objects that are given the same views return the same plans.
    """

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step; None if nothing can run now.

        What the view holds is not changed.
        """


@dataclasses.dataclass(kw_only=True, slots=True)
class SearchTotals:
    """What the searches of a policy took since start.

    Attributes:
      num_searches: Number of searches.
      search_s: Their time, seconds; 0 without a clock.
    """

    num_searches: int = 0
    search_s: float = 0.0


def searches_of(policy: Policy) -> SearchTotals:
    """Returns a copy of a policy's attribute `searches`; zeros if it has none."""
    return dataclasses.replace(getattr(policy, "searches", SearchTotals()))
