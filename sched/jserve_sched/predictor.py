"""Batch-latency prediction: how long will this step take?

`N` is the number of steps asked about at once, `F` the features of a step.
"""

from typing import NamedTuple, Protocol

import numpy as np


class StepSample(NamedTuple):
    """One measured step.

    Attributes:
      features: `[F]`, what it computed; see `features`.
      duration_s: how long it took, seconds.
    """

    features: np.ndarray
    duration_s: float


class Predictor(Protocol):
    """Predicts step durations."""

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        ...

    def update(self, sample: StepSample) -> None:
        """Learns from one measured step."""
        ...
