"""`linear`: SlidingServe's step-time model, refitted while serving.

The one idea: step time is a non-negative sum of the paper's seven features, with a
set of coefficients for each scenario (arXiv 2606.05933, Eq. 5). The paper names
neither solver nor weights nor memory; here they are:

* Non-negative least squares by active sets (Lawson and Hanson, *Solving Least Squares
  Problems*, 1974, ch. 23) on columns scaled to length 1. Collinear columns (without
  prefill x3 equals x5) break nothing: the second one stays 0.
* Squared errors are divided by the measured time. Counted alike, a few long prefills
  decide what a short decode costs; divided by its square, long steps hardly count. On
  937 shapes of a CPU engine, five-fold, dividing by time^0, time^1 and time^2 gave a
  mean error of 15.2, 13.6 and 15.1 ms and a median one of 53, 29 and 25 %. A duration
  under a tenth of the median weighs no more than that, so that no outlier decides.
* The memory is a ring for each scenario, so that a thousand decodes do not push the
  last prefill out. The samples of the start stay beside it, moved to the present
  speed, so that a narrow load does not make the model forget all other steps.

`update` stores a row and nothing else. A fit runs where its owner calls `refit`: in a
background thread of a server, between two steps of a simulation.

`N` is the number of steps asked about at once, `F` the features of a step.
"""

import dataclasses
import functools
import threading

import numpy as np

from jserve_sched import features
from jserve_sched.features import (
    NUM_DECODES,
    NUM_FEATURES,
    PAPER_FEATURES,
    PREFILL_TOKENS,
    SCENARIOS,
)
from jserve_sched.predictor import MAX_STEP_S, StepSample, UpperRatio, is_sound

NUM_COEFFICIENTS = 8  # the bias and x1 to x7
_MIN_EXPERT_SAMPLES = 64
_LEAST_SHARE = 0.1  # of the median; shorter durations weigh no more
_START_UPPER_RATIO = 1.1
_LEARN_EVERY = 16  # samples between two looks at the 95th percentile


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LinearModel:
    """Coefficients of Eq. 5.

    Attributes:
      coefficients: `[4, 8]` seconds per unit; row 0 for all steps, rows 1 to 3 the
        experts in the order of `features.SCENARIOS`; column 0 the bias, then x1 to x7.
      has_expert: `[3]` bool; a scenario without one uses row 0.
    """

    coefficients: np.ndarray
    has_expert: np.ndarray

    def __post_init__(self) -> None:
        shape = (1 + len(SCENARIOS), NUM_COEFFICIENTS)
        if self.coefficients.shape != shape:
            raise ValueError(
                f"coefficients have shape {self.coefficients.shape}, not {shape}"
            )
        if self.has_expert.shape != (len(SCENARIOS),):
            raise ValueError(
                f"has_expert has shape {self.has_expert.shape}, not {(len(SCENARIOS),)}"
            )

    @functools.cached_property
    def _by_scenario(self) -> tuple[np.ndarray, np.ndarray]:
        """The coefficients in use: weights `[3, 7]` and biases `[3]`."""
        used = np.where(
            self.has_expert[:, None], self.coefficients[1:], self.coefficients[0]
        ).astype(np.float64)
        return np.ascontiguousarray(used[:, 1:]), used[:, 0].copy()

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]` (Eq. 5)."""
        return self.predict_in(features.scenarios(matrix), matrix)

    def predict_in(self, scenario: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Returns the same for steps whose scenarios `[N]` are known."""
        weights, biases = self._by_scenario
        chosen = weights[scenario]
        total: np.ndarray = np.einsum("nk,nk->n", matrix[:, PAPER_FEATURES], chosen)
        total += biases[scenario]
        return total


def fit_linear(
    matrix: np.ndarray,
    duration_s: np.ndarray,
    *,
    min_expert_samples: int = _MIN_EXPERT_SAMPLES,
    is_relative: bool = True,
) -> LinearModel:
    """Fits the global model and an expert for each scenario seen often enough.

    Args:
      matrix: features `[N, F]`.
      duration_s: measured durations `[N]`, seconds.
      min_expert_samples: steps of a scenario that make an expert.
      is_relative: whether squared errors are divided by the measured time.

    Raises:
      ValueError: if there is no sample, or one is not finite or not positive.
    """
    if len(matrix) != len(duration_s) or not len(matrix):
        raise ValueError(
            f"{len(matrix)} rows of features and {len(duration_s)} durations: a fit "
            "needs as many of both, and at least 1"
        )
    if not (np.isfinite(matrix).all() and np.isfinite(duration_s).all()):
        raise ValueError("a sample to fit has a number that is not finite")
    if duration_s.min() <= 0:
        raise ValueError(f"a duration to fit is {duration_s.min()} s, not above 0")
    design = np.concatenate(
        (np.ones((len(matrix), 1)), matrix[:, PAPER_FEATURES]), axis=1
    )
    coefficients = np.zeros((1 + len(SCENARIOS), NUM_COEFFICIENTS))
    has_expert = np.zeros(len(SCENARIOS), bool)
    coefficients[0] = _fit_one(design, duration_s, is_relative)
    scenario = features.scenarios(matrix)
    for index in range(len(SCENARIOS)):
        chosen = scenario == index
        if np.count_nonzero(chosen) >= max(min_expert_samples, 1):
            has_expert[index] = True
            coefficients[1 + index] = _fit_one(
                design[chosen], duration_s[chosen], is_relative
            )
    return LinearModel(coefficients=coefficients, has_expert=has_expert)


def _fit_one(
    design: np.ndarray, duration_s: np.ndarray, is_relative: bool
) -> np.ndarray:
    if not is_relative:
        return non_negative_least_squares(design, duration_s)
    least_s = _LEAST_SHARE * np.median(duration_s)
    weight = 1.0 / np.sqrt(np.maximum(duration_s, least_s))
    return non_negative_least_squares(design * weight[:, None], duration_s * weight)


def non_negative_least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns x `[K]` >= 0 that makes |matrix x - target| least.

    Source: Lawson and Hanson (1974), algorithm NNLS, on the normal equations of
    scaled columns; a few columns only, so these are small.

    Args:
      matrix: `[N, K]`.
      target: `[N]`.
    """
    num_columns = matrix.shape[1]
    scale = np.sqrt(np.einsum("nk,nk->k", matrix, matrix))
    scale[scale == 0.0] = 1.0
    scaled = matrix / scale
    gram = scaled.T @ scaled
    # Columns equal but for rounding must not get huge opposite coefficients.
    gram[np.diag_indices(num_columns)] += 1e-12
    moment = scaled.T @ target
    tolerance = 1e-10 * max(float(np.abs(moment).max()), 1e-300)
    found = np.zeros(num_columns)
    is_free = np.zeros(num_columns, bool)
    for _ in range(10 * num_columns):
        gain = np.where(is_free, -np.inf, moment - gram @ found)
        best = int(np.argmax(gain))
        if gain[best] <= tolerance:
            break
        is_free[best] = True
        _settle(gram, moment, found, is_free)
    found /= scale
    return found


def _settle(
    gram: np.ndarray, moment: np.ndarray, found: np.ndarray, is_free: np.ndarray
) -> None:
    """Solves for the free columns, fixing at 0 those that would turn negative."""
    while is_free.any():
        wanted = np.zeros_like(found)
        wanted[is_free] = np.linalg.solve(
            gram[np.ix_(is_free, is_free)], moment[is_free]
        )
        is_blocked = is_free & (wanted <= 0.0)
        if not is_blocked.any():
            found[:] = wanted
            return
        # As far towards `wanted` as no coefficient turns negative.
        share = np.full_like(found, np.inf)
        np.divide(found, found - wanted, out=share, where=is_blocked & (found > 0.0))
        share[is_blocked & (found <= 0.0)] = 0.0
        first = int(np.argmin(share))
        found += share[first] * (wanted - found)
        is_free[first] = False
        found[~is_free] = 0.0


class _Memory:
    """The last steps of each scenario, features and duration in one row."""

    def __init__(self, num_samples: int):
        self._size = max(num_samples // len(SCENARIOS), 1)
        self._rows = np.empty((len(SCENARIOS), self._size, NUM_FEATURES + 1))
        self._counts = [0] * len(SCENARIOS)

    def add(self, sample: StepSample) -> None:
        row = sample.features
        has_prefill = row[PREFILL_TOKENS] > 0
        scenario = (1 + (row[NUM_DECODES] > 0)) if has_prefill else 0
        count = self._counts[scenario]
        place = self._rows[scenario, count % self._size]
        place[:-1] = row
        place[-1] = sample.duration_s
        self._counts[scenario] = count + 1

    def rows(self) -> np.ndarray:
        """Returns a copy of all rows, `[N, F + 1]`."""
        return np.concatenate(
            [
                rows[: min(count, self._size)]
                for rows, count in zip(self._rows, self._counts, strict=True)
            ]
        )


class LinearPredictor:
    """The paper's model, with a memory to refit it from.

    Prediction and `update` belong to the thread that plans; `refit` and `swap` may
    run in any one other.

    Attributes:
      refit_every: samples after which a refit is due.
      num_refits: models swapped in so far.
    """

    def __init__(
        self,
        model: LinearModel,
        *,
        anchors: np.ndarray | None = None,
        refit_every: int = 256,
        memory: int = 3072,
        min_expert_samples: int = _MIN_EXPERT_SAMPLES,
        refits_inline: bool = False,
    ):
        """Makes a predictor that starts from `model`.

        Args:
          model: predicts until the first refit.
          anchors: `[M, F + 1]`, features and then seconds of samples that every
            refit takes in; None for none.
          refit_every: samples after which a refit is due.
          memory: most samples kept, a third for each scenario.
          min_expert_samples: steps of a scenario that make an expert.
          refits_inline: whether `update` refits when it is due: for simulations.
        """
        self._model = self._start = model
        self._anchors = np.empty((0, NUM_FEATURES + 1)) if anchors is None else anchors
        self.refit_every = refit_every
        self._min_expert_samples = min_expert_samples
        self._refits_inline = refits_inline
        self._memory = _Memory(memory)
        self._lock = threading.Lock()  # held to copy the memory, never to fit
        self._upper = UpperRatio(start=_START_UPPER_RATIO, least=1.0)
        self._new: list[StepSample] = []  # not yet seen by `_upper`
        self._num_since_refit = 0
        self.num_refits = 0

    @property
    def model(self) -> LinearModel:
        """The model that predicts now."""
        return self._model

    @property
    def is_refit_due(self) -> bool:
        """Whether enough has been measured since the last refit."""
        return self._num_since_refit >= self.refit_every

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        return self._model.predict(matrix)

    def predict_upper(self, matrix: np.ndarray) -> np.ndarray:
        """Returns the 95th percentiles `[N]` in seconds for features `[N, F]`."""
        scenario = features.scenarios(matrix)
        ratio = self._upper.of(scenario)
        ratio *= self._model.predict_in(scenario, matrix)
        return ratio

    def update(self, sample: StepSample) -> None:
        """Stores one measured step; what is no duration is left out.

        It never waits: a sample that comes while `refit` copies the memory is let go.
        """
        if not is_sound(sample):
            return
        if self._lock.acquire(blocking=False):
            try:
                self._memory.add(sample)
            finally:
                self._lock.release()
        self._num_since_refit += 1
        self._new.append(sample)
        if len(self._new) >= _LEARN_EVERY:
            self._learn_upper()
        if self._refits_inline and self.is_refit_due:
            model = self.refit()
            if model is not None:
                self.swap(model)

    def _learn_upper(self) -> None:
        matrix = np.stack([one.features for one in self._new])
        measured_s = np.array([one.duration_s for one in self._new])
        self._new.clear()
        predicted_s = np.maximum(self._model.predict(matrix), 1e-9)
        self._upper.add(features.scenarios(matrix), measured_s / predicted_s)

    def refit(self) -> LinearModel | None:
        """Returns a model of all that is remembered; None if it would be no good.

        Scenarios that make no expert keep the present one.
        """
        self._num_since_refit = 0
        with self._lock:
            known = self._memory.rows()
        rows = np.concatenate((self._anchors_now(known), known))
        if len(rows) < self._min_expert_samples:
            return None
        model = fit_linear(
            rows[:, :-1], rows[:, -1], min_expert_samples=self._min_expert_samples
        )
        keeps = self._model.has_expert & ~model.has_expert
        coefficients = model.coefficients
        coefficients[1:][keeps] = self._model.coefficients[1:][keeps]
        if not np.isfinite(coefficients).all() or coefficients.max() > MAX_STEP_S:
            return None
        return LinearModel(
            coefficients=coefficients, has_expert=model.has_expert | keeps
        )

    def _anchors_now(self, known: np.ndarray) -> np.ndarray:
        """Returns the anchors as slow as the remembered steps say, `[M, F + 1]`.

        Left as they were, they would hold a machine that has become slower back: of
        two steps that disagree the shorter one weighs more.

        Args:
          known: features and seconds of the remembered steps, `[N, F + 1]`.
        """
        moved = self._anchors.copy()
        start_s = np.maximum(self._start.predict(known), 1e-9)
        ratio = known[:, -1] / start_s
        scenario, of_anchor = features.scenarios(known), features.scenarios(moved)
        for index in range(len(SCENARIOS)):
            chosen = ratio[scenario == index]
            if chosen.size:
                moved[of_anchor == index, -1] *= np.median(chosen)
        return moved

    def swap(self, model: LinearModel) -> None:
        """Predicts by `model` from the next question on."""
        self._model = model
        self.num_refits += 1
