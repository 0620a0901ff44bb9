"""Batch-latency prediction: how long will this step take?

The one idea: a predictor answers twice, with the middle of what to expect and with the
95th percentile, and neither a broken model nor a broken clock may get past this file.
`SafePredictor` lets no answer through that is not a duration, and `is_sound` keeps
measurements that are none away from every model.

`N` is the number of steps asked about at once, `F` the features of a step.
"""

import math
from typing import NamedTuple, Protocol

import numpy as np

from jserve_sched import features

MAX_STEP_S = 600.0  # no step takes so long; a larger number is an error
UPPER_QUANTILE = 0.95

_WINDOW = 512  # ratios remembered for each scenario
_MIN_RATIOS = 40  # of these, the two largest lie above the 95th percentile
_MAX_RATIO = 4.0


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

    def predict_upper(self, matrix: np.ndarray) -> np.ndarray:
        """Returns the 95th percentile of the durations, `[N]` in seconds.

        Args:
          matrix: features `[N, F]`.
        """
        ...

    def update(self, sample: StepSample) -> None:
        """Learns from one measured step."""
        ...


def is_sound(sample: StepSample) -> bool:
    """Tells whether a measurement is fit to learn from: finite, and a duration."""
    return 0.0 < sample.duration_s <= MAX_STEP_S and math.isfinite(
        sample.features.sum()
    )


class UpperRatio:
    """The 95th percentile of measured over predicted time, by scenario.

    It is the empirical one of the last 512 steps, so that a slower machine is
    noticed and forgotten again; a scenario seldom seen keeps the start value.
    """

    def __init__(self, *, start: float, least: float):
        """Makes one that knows nothing yet.

        Args:
          start: the ratio until a scenario has been seen 40 times.
          least: the ratio is never below it.
        """
        self._least = least
        self._ratios = np.full(len(features.SCENARIOS), start)
        self._window = np.empty((len(features.SCENARIOS), _WINDOW))
        self._counts = [0] * len(features.SCENARIOS)

    def of(self, scenario: np.ndarray) -> np.ndarray:
        """Returns the ratio for each scenario, `[N]`."""
        found: np.ndarray = self._ratios[scenario]
        return found

    def add(self, scenario: np.ndarray, ratio: np.ndarray) -> None:
        """Learns measured over predicted time of some steps, `[N]` each."""
        for index, window in enumerate(self._window):
            new = ratio[scenario == index]
            if not new.size:
                continue
            count = self._counts[index]
            window[np.arange(count, count + new.size) % _WINDOW] = new
            self._counts[index] = count = count + new.size
            if count >= _MIN_RATIOS:
                known = min(count, _WINDOW)
                rank = math.ceil(UPPER_QUANTILE * known) - 1
                upper = float(np.partition(window[:known], rank)[rank])
                self._ratios[index] = min(max(upper, self._least), _MAX_RATIO)


class SafePredictor:
    """A predictor whose answers are always durations.

    An entry that is NaN, infinite, not positive or above `MAX_STEP_S` is taken from
    the fallback, which learns from every step as well.

    Attributes:
      num_replaced: entries taken from the fallback so far.
    """

    def __init__(self, inner: Predictor, fallback: Predictor):
        self._inner = inner
        self._fallback = fallback
        self.num_replaced = 0

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        found = self._inner.predict(matrix)
        if _are_durations(found):
            return found
        return self._replace(found, self._fallback.predict(matrix))

    def predict_upper(self, matrix: np.ndarray) -> np.ndarray:
        """Returns the 95th percentiles `[N]` in seconds for features `[N, F]`."""
        found = self._inner.predict_upper(matrix)
        if _are_durations(found):
            return found
        return self._replace(found, self._fallback.predict_upper(matrix))

    def update(self, sample: StepSample) -> None:
        """Learns from one measured step, in both predictors."""
        self._inner.update(sample)
        self._fallback.update(sample)

    def _replace(self, found: np.ndarray, instead: np.ndarray) -> np.ndarray:
        is_good = (found > 0.0) & (found <= MAX_STEP_S)
        self.num_replaced += int(is_good.size - np.count_nonzero(is_good))
        return np.where(is_good, found, instead)


def _are_durations(values: np.ndarray) -> bool:
    """Tells whether all are finite, positive and not absurd; NaN fails each test."""
    if values.size == 1:
        return bool(0.0 < values[0] <= MAX_STEP_S)
    # `not size`: the least and largest of nothing are no numbers.
    return not values.size or bool(values.min() > 0.0 and values.max() <= MAX_STEP_S)
