"""`linear`: SlidingServe's step-time model, refitted while serving.

Step time is a non-negative sum of the paper's seven features, with a set of
coefficients for each scenario (arXiv 2606.05933, Eq. 5). The paper names neither
solver nor weights nor memory; here they are:

* Non-negative least squares (SciPy's) on columns scaled to length 1.
* Squared errors are divided by the measured time. Unweighted, a few long prefills
  decide what a short decode costs; divided by its square, long steps hardly count. On
  937 shapes of a CPU engine, five-fold, dividing by time^0, time^1 and time^2 gave a
  mean error of 15.2, 13.6 and 15.1 ms and a median one of 53, 29 and 25 %. A duration
  under a tenth of the median weighs no more than that, so that no outlier decides.
* The memory keeps the last steps of each scenario, so that a thousand decodes do not
  push the last prefill out. The samples of the start stay beside it, moved to the
  present speed, so that a narrow load does not make the model forget all other steps.

`update` stores a sample and nothing else. A fit runs where its owner calls `refit`: in
a background thread of a server, between two steps of a simulation.

`N` is the number of steps asked about at once, `F` the features of a step.
"""

import collections
import contextlib
import dataclasses
import functools

import numpy as np

from jserve_sched import features
from jserve_sched.features import NUM_FEATURES, PAPER_FEATURES, SCENARIOS
from jserve_sched.predictor import (
    MAX_STEP_S,
    RatioQuantile,
    StepSample,
    is_sound,
    stack_samples,
)

NUM_COEFFICIENTS = 8  # the bias and x1 to x7
_MIN_EXPERT_SAMPLES = 64
_LEAST_SHARE = 0.1  # of the median; shorter durations weigh no more
_MEMORY = 1024  # steps remembered of each scenario


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
) -> LinearModel:
    """Fits the global model and an expert for each scenario seen often enough.

    Args:
      matrix: Features `[N, F]`.
      duration_s: Measured durations `[N]`, seconds.
      min_expert_samples: Steps of a scenario that make an expert.

    Raises:
      ValueError: If there is no sample, one is not finite or not positive, or the
        solver did not converge.
    """
    if not len(matrix):
        raise ValueError("a fit needs at least 1 sample")
    if not (np.isfinite(matrix).all() and np.isfinite(duration_s).all()):
        raise ValueError("a sample to fit has a number that is not finite")
    if duration_s.min() <= 0:
        raise ValueError(f"a duration to fit is {duration_s.min()} s, not above 0")
    design = np.insert(matrix[:, PAPER_FEATURES], 0, 1.0, axis=1)
    scenario = features.scenarios(matrix)
    of_scenario = [scenario == index for index in range(len(SCENARIOS))]
    least_samples = max(min_expert_samples, 1)
    has_expert = np.array([chosen.sum() >= least_samples for chosen in of_scenario])
    coefficients = np.zeros((1 + len(SCENARIOS), NUM_COEFFICIENTS))
    coefficients[0] = _fit_one(design, duration_s)
    for index in np.flatnonzero(has_expert).tolist():
        chosen = of_scenario[index]
        coefficients[1 + index] = _fit_one(design[chosen], duration_s[chosen])
    return LinearModel(coefficients=coefficients, has_expert=has_expert)


def _fit_one(design: np.ndarray, duration_s: np.ndarray) -> np.ndarray:
    """Returns the coefficients `[8]` for rows of 1 and x1 to x7, `[N, 8]`."""
    from scipy.optimize import nnls  # takes half a second to import

    least_s = _LEAST_SHARE * np.median(duration_s)
    weight = 1.0 / np.sqrt(np.maximum(duration_s, least_s))
    weighted = design * weight[:, None]
    scale = np.linalg.norm(weighted, axis=0)
    scale[scale == 0.0] = 1.0
    try:
        found: np.ndarray = nnls(weighted / scale, duration_s * weight)[0] / scale
    except RuntimeError as error:
        raise ValueError(f"a fit to {len(design)} steps failed: {error}") from None
    return found


class LinearPredictor:
    """The paper's model, with a memory to refit it from.

    Prediction and `update` belong to the thread that plans; `refit` may run in one
    other thread.

    Attributes:
      num_refits: Models fitted since the start.
    """

    def __init__(
        self,
        model: LinearModel,
        *,
        anchors: np.ndarray | None = None,
        refit_every: int = 256,
        refits_inline: bool = False,
    ):
        """Makes a predictor that starts from `model`.

        Args:
          model: Predicts until the first refit.
          anchors: `[M, F + 1]`, features and then seconds of samples that every
            refit takes in; None for none.
          refit_every: Samples after which a refit is due.
          refits_inline: Whether `update` refits when it is due: for simulations.
        """
        self._model = self._start = model
        self._anchors = np.empty((0, NUM_FEATURES + 1)) if anchors is None else anchors
        self._refit_every = refit_every
        self._refits_inline = refits_inline
        self._memory: list[collections.deque[StepSample]] = [
            collections.deque(maxlen=_MEMORY) for _ in SCENARIOS
        ]
        self._due: list[StepSample] = []  # a copy of the memory, to be fitted
        self._num_since_due = 0
        self._upper = RatioQuantile()
        self.num_refits = 0

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        return self._model.predict(matrix)

    def predict_upper(self, matrix: np.ndarray) -> np.ndarray:
        """Returns 95th percentiles `[N]` in seconds for features `[N, F]`."""
        scenario = features.scenarios(matrix)
        ratio = self._upper.of(scenario)
        ratio *= self._model.predict_in(scenario, matrix)
        return ratio

    def update(self, sample: StepSample) -> None:
        """Stores one measured step, unless it is not a duration."""
        if not is_sound(sample):
            return
        self._memory[features.scenarios(sample.features[None])[0]].append(sample)
        self._upper.learn(sample, self.predict)
        self._num_since_due += 1
        if self._num_since_due >= self._refit_every:
            self._num_since_due = 0
            self._due = [one for ring in self._memory for one in ring]
            if self._refits_inline:
                with contextlib.suppress(ValueError):
                    self.refit()

    def refit(self) -> None:
        """Fits to what was remembered when the refit fell due, and predicts by that.

        Coefficients out of range leave the model as it is, and so does a refit that is
        not due. A scenario that makes no expert keeps the present one.

        Raises:
          ValueError: If the fit failed; the model stays as it is.
        """
        samples, self._due = self._due, []
        if not samples:
            return
        known, known_s = stack_samples(samples)
        model = fit_linear(
            np.concatenate((self._anchors[:, :-1], known)),
            np.concatenate((self._anchors_now_s(known, known_s), known_s)),
        )
        old = self._model
        keeps = old.has_expert & ~model.has_expert
        coefficients = model.coefficients
        coefficients[1:][keeps] = old.coefficients[1:][keeps]
        if np.isfinite(coefficients).all() and coefficients.max() <= MAX_STEP_S:
            # One assignment, so that the next plan uses the new model whole.
            self._model = LinearModel(
                coefficients=coefficients, has_expert=model.has_expert | keeps
            )
            self.num_refits += 1

    def _anchors_now_s(self, known: np.ndarray, known_s: np.ndarray) -> np.ndarray:
        """Returns the anchors' seconds, as slow as remembered steps say, `[M]`.

        Left as they were, they would hold a machine that has become slower back: of
        two steps that disagree the shorter one weighs more.

        Args:
          known: Features of the remembered steps, `[N, F]`.
          known_s: Their seconds, `[N]`.
        """
        ratio = known_s / np.maximum(self._start.predict(known), 1e-9)
        scenario = features.scenarios(known)
        slowdown = np.ones(len(SCENARIOS))
        for index in np.unique(scenario).tolist():
            slowdown[index] = np.median(ratio[scenario == index])
        of_anchor = features.scenarios(self._anchors)
        moved_s: np.ndarray = self._anchors[:, -1] * slowdown[of_anchor]
        return moved_s
