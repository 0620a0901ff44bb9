"""Timing: predictors of the time of a step, or of a whole request."""

from jserve_sched.timing.linear import LinearPredictor
from jserve_sched.timing.mlp import MlpPredictor
from jserve_sched.timing.predictor import Predictor, StepSample
from jserve_sched.timing.request_latency import RequestLatency
from jserve_sched.timing.table import TablePredictor

__all__ = [
    "LinearPredictor",
    "MlpPredictor",
    "Predictor",
    "RequestLatency",
    "StepSample",
    "TablePredictor",
]
