"""Planning: what a policy looks at and plans with."""

from jserve_sched.planning.builder import PlanBuilder
from jserve_sched.planning.candidates import Candidates, choose_waiting
from jserve_sched.planning.view import SchedulerView

__all__ = ["Candidates", "PlanBuilder", "SchedulerView", "choose_waiting"]
