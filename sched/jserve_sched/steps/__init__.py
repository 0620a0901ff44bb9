"""Steps: what one runs, what its time depends on, and the record of it."""

from jserve_sched.steps.features import step_features
from jserve_sched.steps.plan import Row, StepPlan, StepResult
from jserve_sched.steps.record import StepRecord

__all__ = ["Row", "StepPlan", "StepRecord", "StepResult", "step_features"]
