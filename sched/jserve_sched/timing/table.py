"""`table`: the step-time predictor of a cold start.

Step time is a staircase over buckets, and within a bucket it grows with the KV pages
that attention reads, summed over rows. So each bucket has three numbers, from a short
timed pass: seconds without pages, of a decode's page and of a block's page. They do not
change; `CalibratedPredictor` follows the machine, program by program. In array shapes,
`N` is the number of steps predicted together, `F` the features of a step, `B` and `NB`
count row edges (0 included) and block edges.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from jserve_sched.buckets.table import BucketTable
from jserve_sched.steps import features
from jserve_sched.timing.linear import fit_nonnegative
from jserve_sched.timing.predictor import (
    StepModel,
    StepSample,
    is_sound,
    stack_samples,
)

# The features that a table distinguishes: B, NB and the sums of pages.
_BUCKET = slice(features.NUM_ROWS, features.NUM_BLOCKS + 1)
_PAGES = slice(features.DECODE_PAGES, features.BLOCK_PAGES + 1)

_PRIOR_PARTS = ("no_pages_s", "per_decode_page_s", "per_block_page_s")
_GUESS_STEP_S = 1e-3
_GUESS_TOKEN_S = 2e-5
_GUESS_PAGE_S = 1e-6
_LEAST_SHARE = 0.1  # of a short step is not attention


class TablePredictor(StepModel):
    """Median times by bucket and pages.

    Between two edges times are interpolated linearly, which also gives the time of a
    step *without* its padding.
    """

    def __init__(self, table: BucketTable):
        self._table = table
        axes = ((0, *table.row_edges), table.block_edges)
        self._axes = tuple(np.array(axis, np.float64) for axis in axes)
        self._most = np.array([axis[-1] for axis in self._axes], np.intp)
        self._between = [_between(axis) for axis in self._axes]
        rows, blocks = np.meshgrid(*self._axes, indexing="ij")
        # [3, B, NB]: seconds without pages, per decode page and per block page.
        self._prior = _guess(rows, blocks, table.block_tokens)

    def fit(self, samples: Iterable[StepSample]) -> None:
        """Takes the timed pass, or other steps of each bucket at several contexts.

        Steps of a bucket that differ in context give the cost of a page. A bucket
        without samples takes the prior guess, scaled by the timed buckets' median ratio
        and limited by the timed buckets around it.
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
            i, j = (
                min(int(axis.searchsorted(value)), len(axis) - 1)
                for axis, value in zip(self._axes, bucket, strict=True)
            )
            prior[:, i, j] = _fit_pages(pages[chosen], duration_s[chosen])
            is_timed[i, j] = True
        for part, guess in zip(prior, self._prior, strict=True):
            part[:] = _filled(part, guess, is_timed)
        # Fewer rows than the smallest edge beside blocks run in that edge, if untimed.
        least = self._axes[0].searchsorted(self._table.prefill_row_edges[0])
        fewer, beside = prior[:, :least, 1:], prior[:, least, None, 1:]
        prior[:, :least, 1:] = np.where(is_timed[:least, 1:], fewer, beside)
        prior[:, 0] = prior[:, 1]  # 0 decode rows are padded to the smallest edge
        prior[1, 0] = 0.0
        low, high = _bounds(prior[0], np.ones_like(is_timed))
        prior[0] = np.sqrt(low * high)  # more rows or blocks never take less time
        self._prior = prior

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`.

        Beyond the last edge the last bucket holds.
        """
        sizes = np.minimum(matrix[:, _BUCKET].astype(np.intp), self._most)
        (low, high, above), (left, right, beyond) = (
            (lookup[0][size], lookup[1][size], lookup[2][size])
            for lookup, size in zip(self._between, sizes.T, strict=True)
        )
        parts = self._prior[:, low, left]
        if above.any() or beyond.any():  # a step without padding
            parts += beyond * (self._prior[:, low, right] - parts)
            far = self._prior[:, high, left]
            far += beyond * (self._prior[:, high, right] - far)
            parts += above * (far - parts)
        seconds: np.ndarray = _at_pages(parts, *matrix[:, _PAGES].T)
        return seconds

    def predict_upper(self, matrix: np.ndarray) -> np.ndarray:
        """Returns 95th percentiles `[N]` in seconds for features `[N, F]`."""
        return self.quantiles(matrix)[1]

    def to_json(self) -> dict[str, Any]:
        """Returns the result of the timed pass, for later starts on the same device."""
        parts = zip(_PRIOR_PARTS, self._prior.tolist(), strict=True)
        return {"buckets": self._table.to_json(), **dict(parts)}

    def load_json(self, data: dict[str, Any]) -> bool:
        """Restores what `to_json` returned; returns whether it is for this table.

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
        return True


def guess_step_s(matrix: np.ndarray, *, block_tokens: int) -> np.ndarray:
    """Returns durations `[N]`, seconds, of features `[N, F]` before any is measured."""
    rows, blocks = matrix[:, _BUCKET].T
    guess = _guess(rows, blocks, block_tokens)
    found: np.ndarray = _at_pages(guess, *matrix[:, _PAGES].T)
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


def _at_pages(prior: np.ndarray, decode_pages: Any, block_pages: Any) -> Any:
    """Returns the prior seconds of steps that read these pages."""
    no_pages_s, per_decode_page_s, per_block_page_s = prior
    return (
        no_pages_s + per_decode_page_s * decode_pages + per_block_page_s * block_pages
    )


def _between(axis: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the edges around each size up to the last, and the share of the upper.

    The arrays `[largest size + 1]` hold the place of the edge at or below, that of the
    next one, and how far between them a size is.
    """
    place = np.interp(np.arange(axis[-1] + 1), axis, np.arange(len(axis)))
    low = place.astype(np.intp)
    return low, np.minimum(low + 1, len(axis) - 1), place - low


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


def _fit_pages(pages: np.ndarray, duration_s: np.ndarray) -> np.ndarray:
    """Returns seconds without pages, per decode page and per block page.

    They are fitted to the medians of equal steps; `pages` `[N, 2]` are those of decodes
    and of blocks.
    """
    steps, places = np.unique(pages, axis=0, return_inverse=True)
    groups = [duration_s[places.ravel() == place] for place in range(len(steps))]
    median_s = np.array([np.median(one) for one in groups])
    differs = [True, *(np.ptp(steps, axis=0) > 0.0)]
    found = np.zeros(3)
    found[differs] = fit_nonnegative(
        np.insert(steps, 0, 1.0, axis=1)[:, differs], median_s
    )
    # Noise must not make the first pages cost more than the step that reads them.
    found[0] = max(found[0], _LEAST_SHARE * median_s.min())
    return found
