"""AutoPredictor: begins with a table, and has networks trained on its own steps."""

import functools
import logging
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from jserve_sched.steps.features import (
    BLOCK_PAGES,
    DECODE_PAGES,
    NUM_BLOCKS,
    NUM_FEATURES,
    NUM_ROWS,
)
from jserve_sched.timing.best import BestPredictor
from jserve_sched.timing.calibrated import CalibratedPredictor
from jserve_sched.timing.mlp import MlpPredictor, MlpWeights
from jserve_sched.timing.predictor import StepSample, is_sound

_LOG = logging.getLogger("jserve")
_CAPACITY = 8192  # samples
_OF_CELL = 24  # samples of one program at like contexts
_FIRST_AFTER = 512  # steps; a network is trained after these,
_MORE = 0.5  # then each time there were half as many more,
_MOST_MORE = 50_000  # or this many
_MOST_RATIO = 20.0  # of a network's predictions over the table's, or the reverse


class Reservoir:
    """A bounded sample of steps, spread over programs, contexts and time.

    Each program at each power of two of KV pages keeps a uniform sample of its steps
    (algorithm R: Vitter, *Random Sampling with a Reservoir*, 1985).
    """

    def __init__(self) -> None:
        self._rows = np.empty((_CAPACITY, NUM_FEATURES + 1))
        self._size = 0
        self._cells: dict[tuple[float, ...], tuple[int, list[int]]] = {}
        self._rng = random.Random(0)

    def add(self, sample: StepSample) -> None:
        """Takes a valid sample, in place of another if there are enough like it."""
        row = sample.features
        pages = math.frexp(row[DECODE_PAGES] + row[BLOCK_PAGES])[1]
        cell = (float(row[NUM_ROWS]), float(row[NUM_BLOCKS]), pages)
        num_seen, places = self._cells.get(cell, (0, []))
        if len(places) < _OF_CELL and self._size < _CAPACITY:
            places.append(self._size)
            self._size += 1
            place = places[-1]
        else:
            chosen = self._rng.randrange(num_seen + 1)
            place = places[chosen] if chosen < len(places) else -1
        self._cells[cell] = (num_seen + 1, places)
        if place >= 0:
            self._rows[place] = (*row, sample.duration_s)

    def samples(self) -> np.ndarray:
        """Returns features and seconds, `[N, F + 1]`; any thread may ask."""
        return self._rows[: self._size].copy()


class AutoPredictor(BestPredictor):
    """Has networks trained on measured steps; the better predicts each kind of step."""

    def __init__(
        self,
        table: CalibratedPredictor,
        weights: MlpWeights | None = None,
        *,
        anchors: np.ndarray,
        train: Callable[[np.ndarray, np.ndarray], tuple[MlpWeights, Any]],
        keep: Callable[[MlpWeights], object] | None = None,
        submit: Callable[[Callable[[], None]], object] = lambda work: work(),
    ):
        """Begins with a network of earlier, if there is one, else with the table.

        Args:
          anchors: Features `[M, F]` of steps that training adds, priced by the table,
            so that a network is no guess where no step was measured.
          train: Function that returns a network, and more, for features `[N, F]` and
            seconds `[N]`; raises RuntimeError if it fails.
          keep: Function that stores a network which serves; may raise the same.
          submit: Function that runs both, at once or in one other thread.
        """
        super().__init__(table, None if weights is None else calibrated(weights))
        self._anchors = anchors
        self._train = train
        self._keep = keep
        self._submit = submit
        self._reservoir = Reservoir()
        self._unkept: tuple[CalibratedPredictor, MlpWeights] | None = None
        self._next: float = _FIRST_AFTER  # steps; infinite during a training
        self.num_trained = 0

    def update(self, sample: StepSample) -> None:
        """Learns from one measured step, if it is valid; may submit a training."""
        super().update(sample)
        if is_sound(sample):
            self._reservoir.add(sample)
        if self.num_seen >= self._next:
            self._next = math.inf
            self._submit(self._train_next)
        elif self._keep and self._unkept and self._unkept[0] in self._serving:
            self._submit(functools.partial(_warn, self._keep, self._unkept[1]))
            self._unkept = None

    def _train_next(self) -> None:
        known = self._reservoir.samples()
        table_s = self._first.predict(self._anchors)
        matrix = np.concatenate((known[:, :-1], self._anchors))
        trained = _warn(self._train, matrix, np.concatenate((known[:, -1], table_s)))
        if trained and not is_near(trained[0], self._anchors, table_s):
            _LOG.warning("a step-time network is far from what was timed: not used")
        elif trained:
            self.num_trained += 1
            self._unkept = calibrated(trained[0]), trained[0]
            self.offer(self._unkept[0])
        more = min(_MORE * self.num_seen, _MOST_MORE)
        self._next = self.num_seen + max(more, _FIRST_AFTER)


def _warn(work: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what `work` does; None, with a warning, if it failed."""
    try:
        return work(*arguments)
    except RuntimeError as error:
        _LOG.warning("the step-time network is not trained or not kept: %s", error)


def calibrated(weights: MlpWeights) -> CalibratedPredictor:
    """Returns the predictor of a trained network."""
    return CalibratedPredictor(MlpPredictor(weights), "mlp")


def is_near(weights: MlpWeights, matrix: np.ndarray, table_s: np.ndarray) -> bool:
    """Returns whether a network is within 20 times of a table's seconds `[N]`."""
    ratio = np.log(MlpPredictor(weights).quantiles(matrix)[1] / table_s)
    return bool((np.abs(ratio) < math.log(_MOST_RATIO)).all())
