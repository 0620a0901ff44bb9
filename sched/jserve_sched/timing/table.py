"""`table`: the step-time predictor of a cold start.

Step time is a staircase over compiled shapes, and within a shape it grows with the
pages of the longest context, since padded rows loop to the longest. So there is a cell
per (B, NB) and per power-of-two bin of those two page counts. Cells start from a short
timed pass, follow real steps, and are made monotone, since more work never takes less
time. In shapes, `N` is the number of steps asked about at once, `F` the features of a
step, `B` and `NB` count the row edges (0 included) and block edges.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from jserve_sched.buckets.table import BucketTable
from jserve_sched.steps import features
from jserve_sched.timing.predictor import (
    RatioQuantile,
    StepSample,
    is_sound,
    stack_samples,
)

# The columns that a table tells apart: B, NB and the pages of the longest rows.
_SHAPE = (features.NUM_ROWS, features.NUM_BLOCKS)
_PAGES = (features.DECODE_PAGES, features.BLOCK_PAGES)
_COLUMNS = (*_SHAPE, *_PAGES)

_PRIOR_PARTS = ("base_s", "per_decode_page_s", "per_block_page_s")
_GUESS_STEP_S = 1e-3
_GUESS_TOKEN_S = 2e-5
_GUESS_PAGE_S = 1e-6
_REBUILD_EVERY = 32  # updates between two clean-ups of the grid
_MAX_WEIGHT = 32  # a cell forgets samples older than about this many
_MIN_TRUSTED_WEIGHT = 4  # samples that make a cell more than a guess


class TablePredictor:
    """Medians per shape and context bin, interpolated and monotone.

    Rows and blocks between two edges, and pages between two bins, are interpolated
    linearly, so that the time of a step *without* its padding is known too.
    """

    def __init__(self, table: BucketTable, *, max_pages_per_row: int):
        self._table = table
        bins = [0, 1]
        while bins[-1] < max_pages_per_row:
            bins.append(bins[-1] * 2)
        axes = ((0, *table.row_edges), table.block_edges, bins, bins)
        self._axes = tuple(np.array(axis, np.float64) for axis in axes)
        rows, blocks = np.meshgrid(*self._axes[:2], indexing="ij")
        # [3, B, NB]: seconds at one page, per further decode page and block page.
        self._prior = _guess(rows, blocks, table.block_tokens)
        self._places = [np.arange(len(axis), dtype=np.float64) for axis in self._axes]
        shape = tuple(len(axis) for axis in self._axes)
        self._log_ratio = np.zeros(shape)  # log(measured / prior), running mean
        self._weight = np.zeros(shape)  # samples behind it
        self._upper = RatioQuantile(every=_REBUILD_EVERY)
        self._num_new = 0  # updates since the last clean-up
        self._rebuild()

    def fit(self, samples: Iterable[StepSample]) -> None:
        """Takes the timed pass: medians per shape at three contexts.

        Each shape needs a sample with short contexts; samples with a long decode
        context, or a long block context, give the cost of a page. Shapes without
        samples take the guess, scaled as the others were and no further than the timed
        ones around them.
        """
        sound = [sample for sample in samples if is_sound(sample)]
        if not sound:
            return
        matrix, duration_s = stack_samples(sound)
        shapes, pages = matrix[:, _SHAPE], matrix[:, _PAGES]
        prior = self._prior.copy()
        is_timed = np.zeros(prior.shape[1:], bool)
        for shape in np.unique(shapes, axis=0):
            chosen = (shapes == shape).all(axis=1)
            i, j = self._cell(shape)
            prior[:, i, j] = _fit_pages(pages[chosen], duration_s[chosen])
            is_timed[i, j] = True
        for part, guess in zip(prior, self._prior, strict=True):
            part[:] = _filled(part, guess, is_timed)
        prior[:, 0] = prior[:, 1]  # no decode row is padded to the smallest edge
        prior[1, 0] = 0.0
        self._prior = prior
        self._log_ratio[:] = 0.0
        self._weight[:] = 0.0
        self._rebuild()

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`.

        Linear interpolation in four dimensions; beyond the last edge the last cell
        holds.
        """
        from scipy.ndimage import map_coordinates  # takes half a second to import

        places = np.empty((len(_COLUMNS), len(matrix)))
        for dim, column in enumerate(_COLUMNS):
            places[dim] = np.interp(
                matrix[:, column], self._axes[dim], self._places[dim]
            )
        seconds: np.ndarray = map_coordinates(
            self._grid_s, places, order=1, mode="nearest", prefilter=False
        )
        return seconds

    def predict_upper(self, matrix: np.ndarray) -> np.ndarray:
        """Returns 95th percentiles `[N]` in seconds for features `[N, F]`."""
        found = self.predict(matrix)
        found *= self._upper.of(features.scenarios(matrix))
        return found

    def update(self, sample: StepSample) -> None:
        """Moves the sample's cell towards it; the grid follows in batches."""
        if not is_sound(sample):
            return
        values = sample.features[list(_COLUMNS)].tolist()
        cell = self._cell(values)
        prior_s = _at_pages(self._prior[:, cell[0], cell[1]], values[2], values[3])
        error = math.log(sample.duration_s / prior_s) - self._log_ratio[cell]
        weight = min(self._weight[cell] + 1, _MAX_WEIGHT)
        # A slow outlier (another process, a page fault) moves the cell a little.
        self._log_ratio[cell] += np.clip(error, -0.5, 0.5) / weight
        self._weight[cell] = weight
        self._upper.learn(sample, self.predict)
        self._num_new += 1
        if self._num_new >= _REBUILD_EVERY:
            self._num_new = 0
            self._rebuild()

    def to_json(self) -> dict[str, Any]:
        """Returns the timed pass, for a later start on the same device."""
        parts = zip(_PRIOR_PARTS, self._prior.tolist(), strict=True)
        return {"buckets": self._table.to_json(), **dict(parts)}

    def load_json(self, data: dict[str, Any]) -> bool:
        """Takes back what `to_json` returned; tells whether it is for this table.

        Refused data change nothing.

        Raises:
          ValueError: If a time is negative or not finite.
        """
        if data.get("buckets") != self._table.to_json():
            return False
        parts = [np.asarray(data[name], np.float64) for name in _PRIOR_PARTS]
        if any(part.shape != self._prior.shape[1:] for part in parts):
            return False
        prior = np.stack(parts)
        if not (np.isfinite(prior).all() and prior.min() >= 0 and prior[0].min() > 0):
            raise ValueError("a step time is 0, negative or not finite")
        self._prior = prior
        self._rebuild()
        return True

    def _cell(self, values: Iterable[float]) -> tuple[int, ...]:
        """Returns the cell of a step, or its (row, block) part, above its values."""
        return tuple(
            min(int(axis.searchsorted(value)), len(axis) - 1)
            for axis, value in zip(self._axes, values, strict=False)
        )

    def _rebuild(self) -> None:
        decode_pages, block_pages = np.meshgrid(*self._axes[2:], indexing="ij")
        grid = _at_pages(self._prior[..., None, None], decode_pages, block_pages)
        # Cells never seen take the mean correction of their shape.
        weight = self._weight.sum(axis=(2, 3), keepdims=True)
        mean = (self._weight * self._log_ratio).sum(axis=(2, 3), keepdims=True)
        mean = mean / np.maximum(weight, 1.0)
        ratio = np.where(self._weight > 0, self._log_ratio, mean)
        self._grid_s = _monotone(
            grid * np.exp(ratio), self._weight >= _MIN_TRUSTED_WEIGHT
        )


def guess_step_s(matrix: np.ndarray, *, block_tokens: int) -> np.ndarray:
    """Returns durations `[N]`, seconds, of features `[N, F]` before any is measured."""
    rows, blocks, decode_pages, block_pages = matrix[:, _COLUMNS].T
    found: np.ndarray = _at_pages(
        _guess(rows, blocks, block_tokens), decode_pages, block_pages
    )
    return found


def _guess(rows: np.ndarray, blocks: np.ndarray, block_tokens: int) -> np.ndarray:
    """Returns `[3, ...]` seconds at one page, per further decode and block page."""
    return np.stack(
        (
            _GUESS_STEP_S + _GUESS_TOKEN_S * (rows + blocks * block_tokens),
            _GUESS_PAGE_S * rows,
            _GUESS_PAGE_S * block_tokens * blocks,
        )
    )


def _at_pages(prior: np.ndarray, decode_pages: Any, block_pages: Any) -> Any:
    """Returns the seconds of steps whose longest rows have these pages."""
    base_s, per_decode_page_s, per_block_page_s = prior
    return (
        base_s
        + per_decode_page_s * np.maximum(decode_pages - 1, 0)
        + per_block_page_s * np.maximum(block_pages - 1, 0)
    )


def _monotone(grid_s: np.ndarray, is_trusted: np.ndarray) -> np.ndarray:
    """Returns a grid that falls along no axis, near the one given.

    It is the geometric mean of the least monotone grid above and the largest below:
    the one above would lift everything to its noisiest cell. Cells that real steps have
    filled are made so among themselves, and the others are clipped between them, so
    that no guess moves a measurement.
    """
    low_s, high_s = _bounds(grid_s, is_trusted)
    trusted_s = np.sqrt(low_s * np.where(is_trusted, high_s, 0.0))
    low_s, high_s = _bounds(grid_s, np.ones_like(is_trusted))
    found: np.ndarray = np.clip(
        np.sqrt(low_s * high_s), *_bounds(trusted_s, is_trusted)
    )
    return found


def _bounds(grid_s: np.ndarray, is_known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the largest known cell up to each, and the least from each on."""
    low_s = np.where(is_known, grid_s, 0.0)
    high_s = np.where(is_known, grid_s, np.inf)
    for dim in range(grid_s.ndim):
        low_s = np.maximum.accumulate(low_s, axis=dim)
        high_s = np.flip(np.minimum.accumulate(np.flip(high_s, dim), axis=dim), dim)
    return low_s, high_s


def _filled(
    timed_s: np.ndarray, guess_s: np.ndarray, is_timed: np.ndarray
) -> np.ndarray:
    """Returns times `[B, NB]` where those not timed follow the others."""
    usable = is_timed & (guess_s > 0.0)
    scale = float(np.median(timed_s[usable] / guess_s[usable])) if usable.any() else 1.0
    around = np.clip(guess_s * scale, *_bounds(timed_s, is_timed))
    return np.where(is_timed, timed_s, around)


def _fit_pages(pages: np.ndarray, duration_s: np.ndarray) -> tuple[float, float, float]:
    """Returns seconds at the fewest pages, per decode page and per block page.

    `pages` are those of the longest decode and of the longest block, `[N, 2]`.
    """
    shortest = min(pages.tolist())
    base_s = np.median(duration_s[(pages == shortest).all(axis=1)])
    slopes = [0.0, 0.0]
    for dim in range(2):
        far = pages.min(axis=0)
        far[dim] = pages[:, dim].max()
        is_far = (pages == far).all(axis=1)
        span = far[dim] - pages[:, dim].min()
        if span and is_far.any():
            slopes[dim] = max(np.median(duration_s[is_far]) - base_s, 0.0) / span
    return base_s, *slopes
