"""Prediction of step times.

A predictor gives the median and the 95th percentile of a step's time. Predictions and
measurements that are not finite, not positive or absurdly long are never used. `N` is
the number of steps predicted together, `F` the features of a step.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

MAX_STEP_S = 600.0  # longer times are errors
UPPER_QUANTILE = 0.95

START_UPPER = 1.1  # 95th percentile over median, where no step was measured

Predict = Callable[[np.ndarray], np.ndarray]
"""Returns durations `[N]` in seconds for features `[N, F]`."""


class StepSample(NamedTuple):
    """One measured step: its features `[F]`, and its duration."""

    features: np.ndarray
    duration_s: float


class Predictor(Protocol):
    """Predicts step durations."""

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""

    def predict_upper(self, matrix: np.ndarray) -> np.ndarray:
        """Returns 95th percentiles `[N]` in seconds for features `[N, F]`."""

    def update(self, sample: StepSample) -> None:
        """Learns from one measured step, if it is valid."""


class StepModel(Protocol):
    """Predicts step durations on a machine at its usual speed."""

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""

    def quantiles(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns durations and their 95th percentiles, `[N]` seconds each."""
        found_s = self.predict(matrix)
        return found_s, START_UPPER * found_s

    def update(self, sample: StepSample) -> None:
        """Learns from one measured step, if it is valid."""
        return


def is_sound(sample: StepSample) -> bool:
    """Returns whether a measurement is valid: finite, and a possible duration."""
    return 0.0 < sample.duration_s <= MAX_STEP_S and math.isfinite(
        sample.features.sum()
    )


def stack_samples(samples: Sequence[StepSample]) -> tuple[np.ndarray, np.ndarray]:
    """Returns features `[N, F]` and seconds `[N]` of at least one sample."""
    matrix = np.stack([one.features for one in samples])
    return matrix, np.array([one.duration_s for one in samples])
