"""What a policy is: a pure function from a snapshot to a plan."""

from typing import Protocol, runtime_checkable

from jserve_sched.planning.outlook import Outlook
from jserve_sched.planning.view import SchedulerView
from jserve_sched.steps.plan import StepPlan


class Policy(Protocol):
    """Decides what one step runs."""

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step; None if nothing can run now.

        Pure: the same snapshot gives the same plan, and nothing is changed.
        """


@runtime_checkable
class LookaheadPolicy(Policy, Protocol):
    """A policy that looks further than one step, now and then.

    The scheduler asks `revise` before each `plan`, and keeps what it returns in
    `view.outlook`. So the policy itself remembers nothing.
    """

    def revise(self, view: SchedulerView) -> Outlook | None:
        """Returns the outlook to plan by from now on; None to keep `view.outlook`.

        Pure, but for the time that a search may take: see `Outlook.search_s`.
        """
