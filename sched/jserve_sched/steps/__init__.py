"""Steps: what one runs, and the features that its time depends on."""

from jserve_sched.steps.features import step_features
from jserve_sched.steps.plan import Row, StepPlan, StepResult

__all__ = ["Row", "StepPlan", "StepResult", "step_features"]
