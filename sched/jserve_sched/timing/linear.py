"""`linear`: SlidingServe's step-time model, refitted while serving.

Step time is a non-negative sum of the paper's seven features, with a set of
coefficients for each scenario (arXiv 2606.05933, Eq. 5). The paper names neither
solver nor weights nor memory. Here they are:

* Non-negative least squares (SciPy's) on columns scaled to length 1.
* Squared errors are divided by the measured time, or by a tenth of the median if that
  is longer. Without weights, a few long prefills would decide the cost of a short
  decode; divided by the squared time, long steps would hardly count.
* The memory keeps the last steps of each scenario. Refits also use the samples of the
  start, so that a narrow load does not make the model forget other steps.

`N` is the number of steps asked about at once, `F` the features of a step.
"""

import collections
import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence

import numpy as np

from jserve_sched.steps import features
from jserve_sched.steps.features import NUM_FEATURES, PAPER_FEATURES, SCENARIOS
from jserve_sched.timing.predictor import (
    StepModel,
    StepSample,
    is_sound,
    stack_samples,
)

_LOG = logging.getLogger("jserve")
NUM_COEFFICIENTS = 8  # the bias and x1 to x7
_MIN_EXPERT_SAMPLES = 64
_LEAST_SHARE = 0.1  # of the median; shorter durations do not weigh more
_MEMORY = 1024  # steps remembered of each scenario


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LinearModel:
    """Coefficients of Eq. 5.

    Attributes:
      coefficients: `[4, 8]`, seconds per unit. Row 0 is for all steps, rows 1 to 3 are
        the experts in the order of `features.SCENARIOS`. Column 0 is the bias, the
        others are x1 to x7.
      has_expert: `[3]` bool, whether a scenario has an expert; otherwise it uses row 0.
    """

    coefficients: np.ndarray
    has_expert: np.ndarray

    @functools.cached_property
    def _by_scenario(self) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients in use, by scenario: weights `[3, 7]` and biases `[3]`."""
        used = np.where(
            self.has_expert[:, None], self.coefficients[1:], self.coefficients[0]
        ).astype(np.float64)
        return np.ascontiguousarray(used[:, 1:]), used[:, 0].copy()

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]` (Eq. 5)."""
        scenario = features.scenarios(matrix)
        weights, biases = self._by_scenario
        total: np.ndarray = np.einsum(
            "nk,nk->n", matrix[:, PAPER_FEATURES], weights[scenario]
        )
        total += biases[scenario]
        return total


def fit_linear(
    matrix: np.ndarray,
    duration_s: np.ndarray,
    *,
    min_expert_samples: int = _MIN_EXPERT_SAMPLES,
) -> LinearModel:
    """Fits the global model, and an expert for each scenario with enough steps.

    Of at least one step, to seconds `[N]` above 0.

    Raises:
      ValueError: If the solver did not converge.
    """
    design = np.insert(matrix[:, PAPER_FEATURES], 0, 1.0, axis=1)
    counts = np.bincount(features.scenarios(matrix), minlength=len(SCENARIOS))
    has_expert = counts >= min_expert_samples
    coefficients = np.zeros((1 + len(SCENARIOS), NUM_COEFFICIENTS))
    coefficients[0] = fit_nonnegative(design, duration_s)
    for index in np.flatnonzero(has_expert).tolist():
        chosen = features.scenarios(matrix) == index
        coefficients[1 + index] = fit_nonnegative(design[chosen], duration_s[chosen])
    return LinearModel(coefficients=coefficients, has_expert=has_expert)


def fit_nonnegative(design: np.ndarray, duration_s: np.ndarray) -> np.ndarray:
    """Returns the coefficients `[K]`, 0 or more, for a design `[N, K]`.

    Raises:
      ValueError: If the solver did not converge.
    """
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


class LinearPredictor(StepModel):
    """The paper's model, refitted to remembered steps.

    Attributes:
      num_refits: Number of refits since the start.
    """

    def __init__(
        self,
        model: LinearModel,
        *,
        anchors: np.ndarray | None = None,
        refit_every: int = 256,
        submit: Callable[[Callable[[], None]], object] = lambda refit: refit(),
    ):
        """Starts from `model`.

        Args:
          anchors: `[M, F + 1]`, features and then seconds of the samples of the start,
            which every refit uses; None for none.
          refit_every: Number of samples between two refits.
          submit: Function that runs a refit, at once or in one other thread.
        """
        self._model = model
        self._anchors = np.empty((0, NUM_FEATURES + 1)) if anchors is None else anchors
        self._refit_every = refit_every
        self._submit = submit
        self._memory: list[collections.deque[StepSample]] = [
            collections.deque(maxlen=_MEMORY) for _ in SCENARIOS
        ]
        self._num_new = 0  # samples since the last refit
        self.num_refits = 0

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        return self._model.predict(matrix)

    def update(self, sample: StepSample) -> None:
        """Stores one measured step, if it is valid; may submit a refit."""
        if not is_sound(sample):
            return
        self._memory[features.scenarios(sample.features[None])[0]].append(sample)
        self._num_new += 1
        if self._num_new >= self._refit_every:
            self._num_new = 0
            remembered = [one for ring in self._memory for one in ring]
            self._submit(functools.partial(self._refit, remembered))

    def _refit(self, samples: Sequence[StepSample]) -> None:
        """Replaces the model by a fit to samples; keeps it if the fit fails.

        A scenario with too few samples for an expert keeps the present one.
        """
        known, known_s = stack_samples(samples)
        try:
            model = fit_linear(
                np.concatenate((self._anchors[:, :-1], known)),
                np.concatenate((self._anchors[:, -1], known_s)),
            )
        except ValueError as error:
            _LOG.warning("the step-time model stays as it is: %s", error)
            return
        keeps = self._model.has_expert & ~model.has_expert
        model.coefficients[1:][keeps] = self._model.coefficients[1:][keeps]
        model.has_expert[keeps] = True
        self._model = model  # one assignment, so that every plan uses a whole model
        self.num_refits += 1
