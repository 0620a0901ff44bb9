"""What a policy is: it decides what each step of one engine runs."""

import dataclasses
from typing import Protocol

import numpy as np

from jserve_sched.planning.queue_pass import Order
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
    """What the searches of a policy took since start; 0 seconds without a clock."""

    num_searches: int = 0
    search_s: float = 0.0


def searches_of(policy: Policy) -> SearchTotals:
    """Returns a copy of a policy's attribute `searches`; zeros if it has none."""
    return dataclasses.replace(getattr(policy, "searches", SearchTotals()))


def order_of(policy: Policy) -> Order:
    """Returns a policy's method `order`, by which forecasts rank prompts.

    It is given a snapshot, what steps cost beside its decodes, and prompts: those of
    the snapshot, perhaps one more. It returns their places in the order in which the
    policy would take them, or a tuple of these and the blocks of prefill that its next
    step has, and changes nothing. A policy without it is taken to go by arrival.
    """
    found: Order | None = getattr(policy, "order", None)
    if callable(found):  # it may be an option's name
        return found
    return lambda view, steps, prompts: np.lexsort(
        (prompts.arrival_s, prompts.is_running <= 0)
    )
