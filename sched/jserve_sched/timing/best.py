"""BestPredictor: of several predictors the one that was right lately, by kind of step.

All predict every step before it is learned from, so each is judged on steps that it has
not seen, by the pinball losses of median and 95th percentile in log time. Another takes
over a kind of step if it loses less than the one that serves, by more than two standard
errors of the difference, and if its 95th percentile covers enough.
"""

import logging
from typing import NamedTuple

import numpy as np

from jserve_sched.steps.features import SCENARIOS, scenarios
from jserve_sched.timing.calibrated import CalibratedPredictor
from jserve_sched.timing.predictor import (
    MAX_STEP_S,
    UPPER_QUANTILE,
    StepSample,
    is_sound,
)

_LOG = logging.getLogger("jserve")
_TOGETHER = 8  # steps, from which predictors learn together
_JUDGE_EVERY = 4 * _TOGETHER  # steps
_MIN_JUDGED = 64  # steps of a kind
_LEAST_GAIN = 0.02  # of the loss
_LEAST_COVERAGE = 0.9


class KindErrors(NamedTuple):
    """How wrong the last predictions of a kind of step were, made before the steps ran.

    Attributes:
      median_error: Median of |measured / predicted - 1|.
      p95_coverage: Share of steps that were within their predicted 95th percentile.
      bias: Median of measured / predicted, less 1; above 0 where steps take longer.
    """

    predictor: str
    num_steps: int
    median_error: float
    p95_coverage: float
    bias: float


class BestPredictor:
    """Predicts each kind of step by the predictor that was right lately.

    Whatever these predict, a plan gets valid durations: others are replaced by those of
    the first (`num_replaced`).
    """

    def __init__(
        self,
        first: CalibratedPredictor,
        serving: CalibratedPredictor | None = None,
        *,
        is_judging: bool = True,
    ):
        """Begins with `serving`, if there is one, in each kind; `first` stands in.

        If it is not judging, that one serves for good.
        """
        self._first = first
        self._serving = (serving or first,) * len(SCENARIOS)
        self._all = [first] if serving is None else [first, serving]
        self._is_judging = is_judging
        self._offered: CalibratedPredictor | None = None
        self._new: list[StepSample] = []
        self.num_seen = 0
        self.num_replaced = 0

    def offer(self, one: CalibratedPredictor) -> None:
        """Adds a predictor before the next step; any thread may call it.

        It replaces those added before that serve no kind of step.
        """
        self._offered = one

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        return self._ask("predict", matrix)

    def predict_upper(self, matrix: np.ndarray) -> np.ndarray:
        """Returns 95th percentiles `[N]` in seconds for features `[N, F]`."""
        return self._ask("predict_upper", matrix)

    def update(self, sample: StepSample) -> None:
        """Learns from measured steps, several together; decides which serve."""
        if not is_sound(sample):
            return
        self.num_seen += 1
        self._new.append(sample)
        if len(self._new) >= _TOGETHER:
            for one in self._all:
                one.learn(self._new)
            self._new = []
        if self.num_seen % _JUDGE_EVERY == 0:
            self._choose()

    def errors(self) -> dict[str, KindErrors]:
        """Returns how wrong the predictions of each kind of step were, if any."""
        found = {}
        for kind, one in enumerate(self._serving):
            middle, upper = one.errors(kind).T
            if len(middle):
                found[SCENARIOS[kind]] = KindErrors(
                    predictor=one.name,
                    num_steps=len(middle),
                    median_error=float(np.median(np.abs(np.expm1(middle)))),
                    p95_coverage=float(np.mean(upper <= 0.0)),
                    bias=float(np.expm1(np.median(middle))),
                )
        return found

    def _ask(self, method: str, matrix: np.ndarray) -> np.ndarray:
        serving = self._serving
        if len(set(serving)) == 1:
            found_s: np.ndarray = getattr(serving[0], method)(matrix)
        else:
            kinds, found_s = scenarios(matrix), np.empty(len(matrix))
            for one in {serving[kind] for kind in set(kinds.tolist())}:
                mine = np.array([other is one for other in serving])[kinds]
                found_s[mine] = getattr(one, method)(matrix[mine])
        is_valid = (found_s > 0.0) & (found_s <= MAX_STEP_S)  # NaN fails both
        if is_valid.all():
            return found_s
        self.num_replaced += int((~is_valid).sum())
        first_s = np.clip(getattr(self._first, method)(matrix), 0.0, MAX_STEP_S)
        return np.where(is_valid, found_s, first_s)

    def _choose(self) -> None:
        offered, self._offered = self._offered, None
        if offered is not None:
            used = [one for one in self._all if one in (self._first, *self._serving)]
            self._all = [*used, offered]
        if not self._is_judging:
            return
        serving = list(self._serving)
        for kind, name in enumerate(SCENARIOS):
            for one in self._all:
                known, errors = serving[kind].errors(kind), one.errors(kind)
                if one is not serving[kind] and _is_better(errors, known):
                    losses = [_loss(some).mean() for some in (errors, known)]
                    _LOG.info(
                        "%s steps are priced by %s from now on: "
                        "its pinball loss is %.4f, that of %s %.4f",
                        *(name, one.name, losses[0], serving[kind].name, losses[1]),
                    )
                    serving[kind] = one
        self._serving = tuple(serving)


def _loss(errors: np.ndarray) -> np.ndarray:
    """Returns the pinball losses `[N]` of errors `[N, 2]`; infinite for NaN."""
    below = errors < 0.0
    losses: np.ndarray = (errors * ((0.5, UPPER_QUANTILE) - below)).sum(axis=1)
    return np.where(np.isnan(losses), np.inf, losses)


def _is_better(errors: np.ndarray, known: np.ndarray) -> bool:
    """Returns whether errors `[N, 2]` are less than those of one that serves."""
    count = min(len(errors), len(known))
    if count < _MIN_JUDGED:
        return False
    errors, known = errors[-count:], known[-count:]
    losses, known_losses = _loss(errors), _loss(known)
    if not (np.isfinite(losses).all() and np.isfinite(known_losses).all()):
        return bool(losses.sum() < known_losses.sum())
    covered, known_covered = ((one[:, 1] <= 0.0).mean() for one in (errors, known))
    gain = known_losses - losses
    return bool(
        gain.mean() > _LEAST_GAIN * known_losses.mean()
        and gain.mean() > 2.0 * gain.std() / count**0.5
        and covered >= min(_LEAST_COVERAGE, known_covered)
    )
