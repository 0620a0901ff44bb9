"""Planning: what a policy looks at and plans with."""

from jserve_sched.planning.builder import PlanBuilder
from jserve_sched.planning.candidates import Candidates, choose_waiting
from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.planning.view import SchedulerView

__all__ = [
    "Candidates",
    "PlanBuilder",
    "SchedulerView",
    "StepPrices",
    "choose_waiting",
]
