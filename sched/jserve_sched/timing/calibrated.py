"""CalibratedPredictor: a predictor at the present speed of the machine.

A neighbour takes a core, a clock drops: then all predictions are off by a factor. Two
running medians of measured over predicted time follow it: one of each kind of step, and
one of each size class of programs beside it, which is near 1 while it has few steps.
The 95th percentile is that of the last errors of the kind. A stall, one step far longer
than predicted, moves neither a median nor, unless one step in twenty stalls, this.

`N` is the number of steps, `F` their features. Errors are logarithms of measured over
predicted time.
"""

import collections
import math
import statistics
from collections.abc import Sequence

import numpy as np

from jserve_sched.steps.features import NUM_BLOCKS, NUM_ROWS, SCENARIOS, scenarios
from jserve_sched.timing.predictor import (
    UPPER_QUANTILE,
    StepModel,
    StepSample,
    stack_samples,
)

_MEDIAN_OF = 32  # errors, of a kind of step or of a program
_PRIOR_STEPS = 4  # a program's factor is 1 by these
_UPPER_OF = 256  # errors of a kind, for the percentile; they also judge
_MIN_UPPER = 20  # errors before that; until then, the largest of another kind
_CLASSES = 32  # powers of two of rows, and of blocks

_Last = collections.deque[float]


class CalibratedPredictor:
    """Corrects a predictor, and remembers how wrong it was with the corrections."""

    def __init__(self, inner: StepModel, name: str):
        """Starts without corrections; `inner` learns durations without them."""
        self.name = name
        self._inner = inner
        self._level = np.zeros(len(SCENARIOS))  # log factors, of kinds
        self._offset = np.zeros(len(SCENARIOS) * _CLASSES**2)  # and of programs
        self._factor = np.ones_like(self._offset)  # both
        self._slack = np.zeros(len(SCENARIOS))  # log, of the 95th percentile
        self._levels = [_Last(maxlen=_MEDIAN_OF) for _ in SCENARIOS]
        self._offsets: dict[int, _Last] = collections.defaultdict(
            lambda: _Last(maxlen=_MEDIAN_OF)
        )
        # Errors of the median and of the 95th percentile, and this one without slack.
        self._errors = [
            collections.deque[tuple[float, float, float]](maxlen=_UPPER_OF)
            for _ in SCENARIOS
        ]

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds; `BestPredictor` replaces invalid ones."""
        factor = self._factor[_cells(matrix, scenarios(matrix))]
        found_s: np.ndarray = self._inner.predict(matrix) * factor
        return found_s

    def predict_upper(self, matrix: np.ndarray) -> np.ndarray:
        """Returns 95th percentiles `[N]` in seconds; none is below `predict`."""
        kinds = scenarios(matrix)
        found_s, upper_s = self._inner.quantiles(matrix)
        factor = self._factor[_cells(matrix, kinds)]
        upper_s = upper_s * factor * np.exp(self._slack)[kinds]
        highest_s: np.ndarray = np.maximum(upper_s, found_s * factor)
        return highest_s

    def learn(self, samples: Sequence[StepSample]) -> None:
        """Learns from valid samples, and remembers the errors of their predictions."""
        matrix, measured_s = stack_samples(samples)
        kinds = scenarios(matrix)
        cells = _cells(matrix, kinds)
        # The errors of what was predicted.
        with np.errstate(all="ignore"):  # of a broken predictor
            raw, above = np.log(measured_s / np.array(self._inner.quantiles(matrix)))
            log_factor = np.log(self._factor[cells])
        middle, excess = raw - log_factor, above - log_factor
        upper = np.minimum(excess - self._slack[kinds], middle)
        rows = np.stack((middle, upper, excess), axis=1).tolist()
        for kind, row in zip(kinds.tolist(), rows, strict=True):
            self._errors[kind].append(tuple(row))
        if not np.isfinite(rows).all():
            return  # BestPredictor asks another
        # The factors: of a kind what those of programs leave, and the reverse.
        rests = (raw - self._offset[cells]).tolist()
        for kind, rest in zip(kinds.tolist(), rests, strict=True):
            self._levels[kind].append(rest)
        for kind in set(kinds.tolist()):
            self._level[kind] = statistics.median(self._levels[kind])
            last = np.array(self._errors[kind])[:, 2]
            last = last[np.isfinite(last)]
            if len(last) >= _MIN_UPPER:
                rank = math.ceil(UPPER_QUANTILE * len(last)) - 1
                self._slack[kind] = np.partition(last, rank)[rank]
        is_known = np.array([len(one) >= _MIN_UPPER for one in self._errors])
        self._slack[~is_known] = np.max(self._slack[is_known], initial=0.0)
        rests = (raw - self._level[kinds]).tolist()
        for cell, rest in zip(cells.tolist(), rests, strict=True):
            self._offsets[cell].append(rest)
        for cell in set(cells.tolist()):
            known = self._offsets[cell]
            share = len(known) / (len(known) + _PRIOR_STEPS)
            self._offset[cell] = share * statistics.median(known)
        self._factor = np.exp(np.repeat(self._level, _CLASSES**2) + self._offset)
        # The inner predictor learns what the factors leave.
        plain_s = measured_s / self._factor[cells]
        for sample, duration_s in zip(samples, plain_s.tolist(), strict=True):
            self._inner.update(sample._replace(duration_s=duration_s))

    def errors(self, kind: int) -> np.ndarray:
        """Returns the last errors `[N, 2]` of a kind: median and 95th percentile."""
        return np.array(list(self._errors[kind])).reshape(-1, 3)[:, :2]


def _cells(matrix: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Returns a number of each step's kind and size class of its program, `[N]`."""
    rows, blocks = np.frexp(matrix[:, NUM_ROWS : NUM_BLOCKS + 1])[1].T
    found: np.ndarray = (kinds * _CLASSES + rows) * _CLASSES + blocks
    return found
