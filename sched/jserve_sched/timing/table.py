"""`table`: the step-time predictor of a cold start.

Step time is a staircase over buckets, and within a bucket it grows with the KV pages
that attention reads, summed over rows. So there is a cell for each bucket and each pair
of power-of-two bins of the two sums of pages (of decodes and of blocks).
Cells start from a short timed pass, follow real steps, and are made monotone, since
more work never takes less time. In array shapes, `N` is the number of steps predicted
together, `F` the features of a step, `B` and `NB` count row edges (0 included) and
block edges.
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

# The features that a table distinguishes: B, NB and the sums of pages.
_BUCKET = (features.NUM_ROWS, features.NUM_BLOCKS)
_PAGES = (features.DECODE_PAGES, features.BLOCK_PAGES)
_COLUMNS = (*_BUCKET, *_PAGES)

_PRIOR_PARTS = ("no_pages_s", "per_decode_page_s", "per_block_page_s")
_GUESS_STEP_S = 1e-3
_GUESS_TOKEN_S = 2e-5
_GUESS_PAGE_S = 1e-6
_LEAST_SHARE = 0.1  # of a short step is not attention
_REBUILD_EVERY = 32  # updates between two rebuilds of the monotone grid
_MAX_WEIGHT = 32  # a cell forgets samples older than about this many
_MIN_TRUSTED_WEIGHT = 4  # samples after which a cell is trusted


class TablePredictor:
    """Median times by bucket and context bin, interpolated and monotone.

    Between two edges, and between two bins, times are interpolated linearly, which also
    gives the time of a step *without* its padding.
    """

    def __init__(self, table: BucketTable, *, max_pages_per_row: int):
        self._table = table
        bins = (
            _bins(count * max_pages_per_row)
            for count in (table.max_rows, table.max_blocks)
        )
        axes = ((0, *table.row_edges), table.block_edges, *bins)
        self._axes = tuple(np.array(axis, np.float64) for axis in axes)
        rows, blocks = np.meshgrid(*self._axes[:2], indexing="ij")
        # [3, B, NB]: seconds without pages, per decode page and per block page.
        self._prior = _guess(rows, blocks, table.block_tokens)
        self._places = [np.arange(len(axis), dtype=np.float64) for axis in self._axes]
        shape = tuple(len(axis) for axis in self._axes)
        self._log_ratio = np.zeros(shape)  # log(measured / prior), running mean
        self._weight = np.zeros(shape)  # samples in that mean
        self._upper = RatioQuantile(every=_REBUILD_EVERY)
        self._num_new = 0  # updates since the last rebuild
        self._rebuild()

    def fit(self, samples: Iterable[StepSample]) -> None:
        """Takes the timed pass: medians of each bucket at three contexts.

        Each timed bucket needs a sample with short contexts; samples with a long decode
        context, or a long block context, give the cost of a page. A bucket without
        samples takes the prior guess, scaled by the timed buckets' median ratio and
        limited by the timed buckets around it.
        """
        sound = [sample for sample in samples if is_sound(sample)]
        if not sound:
            return
        matrix, duration_s = stack_samples(sound)
        buckets, pages = matrix[:, _BUCKET], matrix[:, _PAGES]
        prior = self._prior.copy()
        is_timed = np.zeros(prior.shape[1:], bool)
        for bucket in np.unique(buckets, axis=0):
            chosen = (buckets == bucket).all(axis=1)
            i, j = self._cell(bucket)
            prior[:, i, j] = _fit_pages(pages[chosen], duration_s[chosen])
            is_timed[i, j] = True
        for part, guess in zip(prior, self._prior, strict=True):
            part[:] = _filled(part, guess, is_timed)
        prior[:, 0] = prior[:, 1]  # 0 decode rows are padded to the smallest edge
        prior[1, 0] = 0.0
        self._prior = prior
        self._log_ratio[:] = 0.0
        self._weight[:] = 0.0
        self._rebuild()

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`.

        They are interpolated linearly in four dimensions; beyond the last edge or bin
        the last cell holds.
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
        return self._upper.scale(self.predict(matrix), matrix)

    def update(self, sample: StepSample) -> None:
        """Moves the sample's cell towards it; the grid is rebuilt every few samples."""
        if not is_sound(sample):
            return
        values = sample.features[list(_COLUMNS)].tolist()
        cell = self._cell(values)
        prior_s = _at_pages(self._prior[:, cell[0], cell[1]], values[2], values[3])
        error = math.log(sample.duration_s / prior_s) - self._log_ratio[cell]
        weight = min(self._weight[cell] + 1, _MAX_WEIGHT)
        # Clipped, so that a slow outlier (another process, a page fault) moves the cell
        # only a little.
        self._log_ratio[cell] += np.clip(error, -0.5, 0.5) / weight
        self._weight[cell] = weight
        self._upper.learn(sample, self.predict)
        self._num_new += 1
        if self._num_new >= _REBUILD_EVERY:
            self._num_new = 0
            self._rebuild()

    def to_json(self) -> dict[str, Any]:
        """Returns the result of the timed pass, for later starts on the same device."""
        parts = zip(_PRIOR_PARTS, self._prior.tolist(), strict=True)
        return {"buckets": self._table.to_json(), **dict(parts)}

    def load_json(self, data: dict[str, Any]) -> bool:
        """Restores what `to_json` returned, if it is for this table.

        Returns:
          Whether it is; otherwise nothing is changed.

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
        """Returns the cell at or above a step's columns, or its (row, block) part."""
        return tuple(
            min(int(axis.searchsorted(value)), len(axis) - 1)
            for axis, value in zip(self._axes, values, strict=False)
        )

    def _rebuild(self) -> None:
        decode_pages, block_pages = np.meshgrid(*self._axes[2:], indexing="ij")
        grid = _at_pages(self._prior[..., None, None], decode_pages, block_pages)
        # Cells without samples take the mean correction of their bucket.
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
    """Returns `[3, ...]` seconds without pages, per decode page and per block page."""
    tokens = rows + blocks * block_tokens
    return np.stack(
        (
            _GUESS_STEP_S + _GUESS_TOKEN_S * tokens,
            np.full(tokens.shape, _GUESS_PAGE_S),
            np.full(tokens.shape, _GUESS_PAGE_S * block_tokens),
        )
    )


def _bins(most: int) -> list[int]:
    """Returns 0 and the powers of two up to `most`, or just above it."""
    return [0, *(1 << bit for bit in range((most - 1).bit_length() + 1))]


def _at_pages(prior: np.ndarray, decode_pages: Any, block_pages: Any) -> Any:
    """Returns the prior seconds of steps that read these pages."""
    no_pages_s, per_decode_page_s, per_block_page_s = prior
    return (
        no_pages_s + per_decode_page_s * decode_pages + per_block_page_s * block_pages
    )


def _monotone(grid_s: np.ndarray, is_trusted: np.ndarray) -> np.ndarray:
    """Returns a grid near the given one that does not fall along any axis.

    It is the geometric mean of the least monotone grid above and the largest below; the
    one above alone would lift everything to its noisiest cell. Trusted cells are made
    monotone among themselves, and the others are clipped between them, so that no guess
    moves a measurement.
    """
    low_s, high_s = _bounds(grid_s, is_trusted)
    trusted_s = np.sqrt(low_s * np.where(is_trusted, high_s, 0.0))
    low_s, high_s = _bounds(grid_s, np.ones_like(is_trusted))
    found: np.ndarray = np.clip(
        np.sqrt(low_s * high_s), *_bounds(trusted_s, is_trusted)
    )
    return found


def _bounds(grid_s: np.ndarray, is_known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each cell the largest known at or below, and the least above."""
    low_s = np.where(is_known, grid_s, 0.0)
    high_s = np.where(is_known, grid_s, np.inf)
    for dim in range(grid_s.ndim):
        low_s = np.maximum.accumulate(low_s, axis=dim)
        high_s = np.flip(np.minimum.accumulate(np.flip(high_s, dim), axis=dim), dim)
    return low_s, high_s


def _filled(
    timed_s: np.ndarray, guess_s: np.ndarray, is_timed: np.ndarray
) -> np.ndarray:
    """Returns times `[B, NB]`, with scaled and limited guesses where not timed."""
    usable = is_timed & (guess_s > 0.0)
    scale = float(np.median(timed_s[usable] / guess_s[usable])) if usable.any() else 1.0
    around = np.clip(guess_s * scale, *_bounds(timed_s, is_timed))
    return np.where(is_timed, timed_s, around)


def _fit_pages(pages: np.ndarray, duration_s: np.ndarray) -> tuple[float, float, float]:
    """Returns seconds without pages, per decode page and per block page.

    `pages` `[N, 2]` are those of decodes and of blocks.
    """
    shortest = pages.min(axis=0)
    base_s = float(np.median(duration_s[(pages == shortest).all(axis=1)]))
    slopes = np.zeros(2)
    for dim in range(2):
        far = shortest.copy()
        far[dim] = pages[:, dim].max()
        is_far = (pages == far).all(axis=1)
        span = far[dim] - shortest[dim]
        if span and is_far.any():
            slopes[dim] = max(np.median(duration_s[is_far]) - base_s, 0.0) / span
    # Noise must not make the first pages cost more than the step that reads them.
    no_pages_s = max(base_s - float(shortest @ slopes), _LEAST_SHARE * base_s)
    return no_pages_s, float(slopes[0]), float(slopes[1])
