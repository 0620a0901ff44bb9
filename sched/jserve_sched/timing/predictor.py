"""Prediction of step times.

A predictor gives the median and the 95th percentile of a step's time. Predictions and
measurements that are not finite, not positive or absurdly long are never used. `N` is
the number of steps predicted together, `F` the features of a step.
"""

import collections
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from jserve_sched.steps import features

MAX_STEP_S = 600.0  # longer times are errors
UPPER_QUANTILE = 0.95

_MIN_RATIOS = 40  # the two largest of these lie above the 95th percentile
_MAX_RATIO = 4.0

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


def is_sound(sample: StepSample) -> bool:
    """Returns whether a measurement is valid: finite, and a possible duration."""
    return 0.0 < sample.duration_s <= MAX_STEP_S and math.isfinite(
        sample.features.sum()
    )


def stack_samples(samples: Sequence[StepSample]) -> tuple[np.ndarray, np.ndarray]:
    """Returns features `[N, F]` and seconds `[N]` of at least one sample."""
    matrix = np.stack([one.features for one in samples])
    return matrix, np.array([one.duration_s for one in samples])


class RatioQuantile:
    """A quantile of measured over predicted time, by scenario.

    It is the empirical quantile of the last steps. A scenario with too few steps keeps
    the start value.
    """

    def __init__(
        self,
        quantile: float = UPPER_QUANTILE,
        *,
        start: float = 1.1,
        least: float = 1.0,
        window: int = 512,
        every: int = 16,
    ):
        """Starts with `start` for each scenario.

        Args:
          start: Ratio until a scenario has had 40 steps.
          least: Lower bound of the ratio.
          window: Number of ratios remembered of each scenario.
          every: Number of samples after which the ratios are computed again.
        """
        self._quantile = quantile
        self._every = every
        self._least = least
        self._ratios = np.full(len(features.SCENARIOS), start)
        self._windows: list[collections.deque[float]] = [
            collections.deque(maxlen=window) for _ in features.SCENARIOS
        ]
        self._new: list[StepSample] = []

    def scale(self, values: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Returns values `[N]` of steps `[N, F]` times their scenarios' ratios."""
        scaled: np.ndarray = values * self._ratios[features.scenarios(matrix)]
        return scaled

    def learn(self, sample: StepSample, predict: Predict) -> None:
        """Adds a valid sample; every few samples compares them with `predict`."""
        self._new.append(sample)
        if len(self._new) < self._every:
            return
        matrix, measured_s = stack_samples(self._new)
        self._new.clear()
        ratio = measured_s / np.maximum(predict(matrix), 1e-9)
        if not np.isfinite(ratio).all():
            return  # from a broken network, for which the fallback predicts
        scenario = features.scenarios(matrix)
        for index in np.unique(scenario).tolist():
            window = self._windows[index]
            window.extend(ratio[scenario == index].tolist())
            if len(window) >= _MIN_RATIOS:
                rank = math.ceil(self._quantile * len(window)) - 1
                found = sorted(window)[rank]
                self._ratios[index] = min(max(found, self._least), _MAX_RATIO)


class SafePredictor:
    """A predictor whose predictions are always valid durations.

    A prediction that is NaN, infinite, not positive or above `MAX_STEP_S` is replaced
    by that of the fallback, which learns from every step too.

    Attributes:
      num_replaced: Number of predictions replaced since the start.
    """

    def __init__(self, inner: Predictor, fallback: Predictor):
        self._inner = inner
        self._fallback = fallback
        self.num_replaced = 0

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        return self._checked(matrix, self._inner.predict, self._fallback.predict)

    def predict_upper(self, matrix: np.ndarray) -> np.ndarray:
        """Returns 95th percentiles `[N]` in seconds for features `[N, F]`."""
        return self._checked(
            matrix, self._inner.predict_upper, self._fallback.predict_upper
        )

    def update(self, sample: StepSample) -> None:
        """Learns from one measured step, in both predictors."""
        self._inner.update(sample)
        self._fallback.update(sample)

    def _checked(
        self, matrix: np.ndarray, predict: Predict, fallback: Predict
    ) -> np.ndarray:
        found = predict(matrix)
        is_duration = (found > 0.0) & (found <= MAX_STEP_S)  # NaN fails both
        if is_duration.all():
            return found
        self.num_replaced += int(np.count_nonzero(~is_duration))
        return np.where(is_duration, found, fallback(matrix))
