"""`table`: the step-time predictor of a cold start.

The one idea: step time is a staircase over compiled shapes, and within a shape it
grows with the pages of the longest context, since padded rows loop to the longest. So
there is a cell per (B, NB) and per power-of-two bin of those two page counts; cells
start from a short timed pass, follow real steps, and are made monotone, since more
work never takes less time. Cells that real steps have filled come first in that: the
others give way.

`N` is the number of steps asked about at once, `F` the features of a step.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from jserve_sched import features
from jserve_sched.buckets import BucketTable
from jserve_sched.predictor import StepSample, UpperRatio, is_sound

# The columns that a table tells apart: B, NB and the pages of the longest rows.
_COLUMNS = (
    features.NUM_ROWS,
    features.NUM_BLOCKS,
    features.DECODE_PAGES,
    features.BLOCK_PAGES,
)


class _Timing(NamedTuple):
    """A sample, as a table sees it."""

    num_rows: float
    num_blocks: float
    decode_pages: float
    block_pages: float
    duration_s: float


def _timing(sample: StepSample) -> _Timing:
    rows, blocks, decode_pages, block_pages = sample.features[list(_COLUMNS)].tolist()
    return _Timing(rows, blocks, decode_pages, block_pages, sample.duration_s)


@dataclasses.dataclass(frozen=True)
class _Prior:
    """Time of each shape, linear in pages; each array is `[B edges, NB edges]`."""

    base_s: np.ndarray
    per_decode_page_s: np.ndarray
    per_block_page_s: np.ndarray


_GUESS_STEP_S = 1e-3
_GUESS_TOKEN_S = 2e-5
_GUESS_PAGE_S = 1e-6
_REBUILD_EVERY = 32  # updates between two clean-ups of the grid
_MAX_WEIGHT = 32  # a cell forgets samples older than about this many
_MIN_TRUSTED_WEIGHT = 4  # samples that make a cell more than a guess
_START_UPPER_RATIO = 1.1


class TablePredictor:
    """Medians per shape and context bin, interpolated and monotone.

    Rows and blocks between two edges, and pages between two bins, are
    interpolated linearly, so the time of a step *without* its padding can be asked
    as well.
    """

    def __init__(self, table: BucketTable, *, max_pages_per_row: int):
        self._table = table
        bins = [0, 1]
        while bins[-1] < max_pages_per_row:
            bins.append(bins[-1] * 2)
        self._axes = (
            np.array((0, *table.row_edges), np.float64),
            np.array(table.block_edges, np.float64),
            np.array(bins, np.float64),
            np.array(bins, np.float64),
        )
        rows, blocks = self._axes[0][:, None], self._axes[1][None, :]
        tokens = rows + blocks * table.block_tokens
        self._prior = _Prior(
            _GUESS_STEP_S + _GUESS_TOKEN_S * tokens,
            _GUESS_PAGE_S * np.broadcast_to(rows, tokens.shape),
            _GUESS_PAGE_S * table.block_tokens * np.broadcast_to(blocks, tokens.shape),
        )
        shape = tuple(len(axis) for axis in self._axes)
        self._log_ratio = np.zeros(shape)  # log(measured / prior), running mean
        self._weight = np.zeros(shape)  # samples behind it
        self._strides = [math.prod(shape[dim + 1 :]) for dim in range(4)]
        # Places of a cell's corners after its first, in order of the dimensions.
        self._corners = np.array(
            [
                sum(
                    corner * stride
                    for corner, stride in zip(one, self._strides, strict=True)
                )
                for one in itertools.product((0, 1), repeat=4)
            ]
        )
        self._per_width = [1.0 / np.diff(axis) for axis in self._axes]
        self._upper = UpperRatio(start=_START_UPPER_RATIO, least=1.0)
        self._new: list[StepSample] = []  # since the last clean-up
        self._rebuild()

    def fit(self, samples: Iterable[StepSample]) -> None:
        """Takes the timed pass: medians per shape at three contexts.

        Each shape needs a sample with short contexts; samples with a long decode
        context, or a long block context, give the cost of a page. Shapes without
        samples (pairs that cannot occur, or are not compiled yet) take the guess,
        scaled as the others were and no further than the timed ones around them.
        """
        groups: dict[tuple[float, float], list[_Timing]] = {}
        for sample in samples:
            if not is_sound(sample):
                continue
            timing = _timing(sample)
            groups.setdefault((timing.num_rows, timing.num_blocks), []).append(timing)
        if not groups:
            return
        base = self._prior.base_s.copy()
        decode = self._prior.per_decode_page_s.copy()
        block = self._prior.per_block_page_s.copy()
        is_timed = np.zeros(base.shape, bool)
        for (num_rows, num_blocks), group in groups.items():
            i = int(np.searchsorted(self._axes[0], num_rows))
            j = int(np.searchsorted(self._axes[1], num_blocks))
            base[i, j], decode[i, j], block[i, j] = _fit_pages(group)
            is_timed[i, j] = True
        base = _filled(base, self._prior.base_s, is_timed)
        decode = _filled(decode, self._prior.per_decode_page_s, is_timed)
        block = _filled(block, self._prior.per_block_page_s, is_timed)
        base[0] = base[1]  # no decode row is padded to the smallest edge
        decode[0] = 0.0
        block[0] = block[1]
        self._prior = _Prior(base, decode, block)
        self._log_ratio[:] = 0.0
        self._weight[:] = 0.0
        self._rebuild()

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`.

        Source: linear interpolation in four dimensions over the cells; beyond the
        last edge the last cell holds.
        """
        first = np.zeros(len(matrix), np.int64)
        shares = []
        for dim, axis in enumerate(self._axes):
            values = np.minimum(np.maximum(matrix[:, _COLUMNS[dim]], 0.0), axis[-1])
            low = np.minimum(axis.searchsorted(values, "right") - 1, len(axis) - 2)
            shares.append((values - axis[low]) * self._per_width[dim][low])
            first += low * self._strides[dim]
        # The 16 corners of each step's cell; each dimension halves them.
        total = self._grid_s.reshape(-1).take(first[:, None] + self._corners)
        for share in shares:
            half = total.shape[1] // 2
            lower, upper = total[:, :half], total[:, half:]
            total = lower + (upper - lower) * share[:, None]
        seconds: np.ndarray = total[:, 0]
        return seconds

    def predict_upper(self, matrix: np.ndarray) -> np.ndarray:
        """Returns the 95th percentiles `[N]` in seconds for features `[N, F]`."""
        ratio = self._upper.of(features.scenarios(matrix))
        ratio *= self.predict(matrix)
        return ratio

    def update(self, sample: StepSample) -> None:
        """Moves the sample's cell towards it; the grid follows in batches."""
        if not is_sound(sample):
            return
        timing = _timing(sample)
        cell = (
            self._bin(0, timing.num_rows),
            self._bin(1, timing.num_blocks),
            self._bin(2, timing.decode_pages),
            self._bin(3, timing.block_pages),
        )
        prior_s = (
            self._prior.base_s[cell[:2]]
            + self._prior.per_decode_page_s[cell[:2]] * max(timing.decode_pages - 1, 0)
            + self._prior.per_block_page_s[cell[:2]] * max(timing.block_pages - 1, 0)
        )
        error = math.log(sample.duration_s / prior_s) - self._log_ratio[cell]
        weight = min(self._weight[cell] + 1, _MAX_WEIGHT)
        # A slow outlier (another process, a page fault) moves the cell a little.
        self._log_ratio[cell] += np.clip(error, -0.5, 0.5) / weight
        self._weight[cell] = weight
        self._new.append(sample)
        if len(self._new) >= _REBUILD_EVERY:
            self._learn_upper()
            self._rebuild()

    def _learn_upper(self) -> None:
        """Compares what was measured with what the grid said meanwhile."""
        matrix = np.stack([one.features for one in self._new])
        measured_s = np.array([one.duration_s for one in self._new])
        self._new.clear()
        ratio = measured_s / self.predict(matrix)
        self._upper.add(features.scenarios(matrix), ratio)

    def to_json(self) -> dict[str, Any]:
        """Returns the timed pass, for a later start on the same device."""
        return {
            "buckets": self._table.to_json(),
            "base_s": self._prior.base_s.tolist(),
            "per_decode_page_s": self._prior.per_decode_page_s.tolist(),
            "per_block_page_s": self._prior.per_block_page_s.tolist(),
        }

    def load_json(self, data: dict[str, Any]) -> bool:
        """Takes back what `to_json` gave; tells whether it is for this table.

        What is refused changes nothing.

        Raises:
          ValueError: if a time is negative or not finite.
        """
        if data.get("buckets") != self._table.to_json():
            return False
        prior = _Prior(
            np.asarray(data["base_s"], np.float64),
            np.asarray(data["per_decode_page_s"], np.float64),
            np.asarray(data["per_block_page_s"], np.float64),
        )
        parts = (prior.base_s, prior.per_decode_page_s, prior.per_block_page_s)
        if any(part.shape != self._prior.base_s.shape for part in parts):
            return False
        if not all(np.isfinite(part).all() and np.min(part) >= 0.0 for part in parts):
            raise ValueError("a step time is negative or not finite")
        if np.min(prior.base_s) <= 0.0:
            raise ValueError("a step time is 0")
        self._prior = prior
        self._rebuild()
        return True

    def _bin(self, dim: int, value: float) -> int:
        axis = self._axes[dim]
        return min(int(np.searchsorted(axis, value)), len(axis) - 1)

    def _rebuild(self) -> None:
        decode_pages = np.maximum(self._axes[2] - 1, 0)[None, None, :, None]
        block_pages = np.maximum(self._axes[3] - 1, 0)[None, None, None, :]
        grid = (
            self._prior.base_s[:, :, None, None]
            + self._prior.per_decode_page_s[:, :, None, None] * decode_pages
            + self._prior.per_block_page_s[:, :, None, None] * block_pages
        )
        # Cells never seen take the mean correction of their shape.
        weight = self._weight.sum(axis=(2, 3), keepdims=True)
        mean = (self._weight * self._log_ratio).sum(axis=(2, 3), keepdims=True)
        mean = mean / np.maximum(weight, 1.0)
        ratio = np.where(self._weight > 0, self._log_ratio, mean)
        self._grid_s = _monotone(
            grid * np.exp(ratio), self._weight >= _MIN_TRUSTED_WEIGHT
        )


def _monotone(grid_s: np.ndarray, is_trusted: np.ndarray) -> np.ndarray:
    """Returns a grid that falls along no axis, near the one given.

    Violations are split between the two sides, at the geometric mean of the least
    monotone grid above and the largest below: taking the one above would lift
    everything to its noisiest cell. Trusted cells are made so among themselves, and
    the others are clipped between them, so that no guess moves a measurement. (A
    monotone grid clipped between monotone bounds is monotone.)

    Args:
      grid_s: seconds, all above 0.
      is_trusted: cells that real steps have filled.
    """
    trusted = _between(grid_s, is_trusted)
    found: np.ndarray = np.clip(
        _between(grid_s, np.ones_like(is_trusted)),
        _largest_before(trusted),
        _least_after(np.where(is_trusted, trusted, np.inf)),
    )
    return found


def _between(grid_s: np.ndarray, is_chosen: np.ndarray) -> np.ndarray:
    """Returns chosen cells made monotone among themselves; 0 in the other cells."""
    product = _largest_before(np.where(is_chosen, grid_s, 0.0))
    below = _least_after(np.where(is_chosen, grid_s, np.inf))
    product *= np.where(is_chosen, below, 0.0)
    np.sqrt(product, out=product)
    return product


def _largest_before(grid_s: np.ndarray) -> np.ndarray:
    """Returns the largest cell up to each, along all axes."""
    for dim in range(grid_s.ndim):
        grid_s = np.maximum.accumulate(grid_s, axis=dim)
    return grid_s


def _least_after(grid_s: np.ndarray) -> np.ndarray:
    """Returns the least cell from each on, along all axes."""
    flipped = np.flip(grid_s)
    for dim in range(grid_s.ndim):
        flipped = np.minimum.accumulate(flipped, axis=dim)
    return np.flip(flipped)


def _filled(
    timed_s: np.ndarray, guess_s: np.ndarray, is_timed: np.ndarray
) -> np.ndarray:
    """Returns times `[B edges, NB edges]` where those not timed follow the others."""
    usable = is_timed & (guess_s > 0.0)
    scale = float(np.median(timed_s[usable] / guess_s[usable])) if usable.any() else 1.0
    around = np.clip(
        guess_s * scale,
        _largest_before(np.where(is_timed, timed_s, 0.0)),
        _least_after(np.where(is_timed, timed_s, np.inf)),
    )
    return np.where(is_timed, timed_s, around)


def _fit_pages(group: list[_Timing]) -> tuple[float, float, float]:
    """Returns base seconds at one page, seconds per decode page and per block page."""

    def median_s(chosen: list[_Timing]) -> float:
        return float(np.median([one.duration_s for one in chosen]))

    short = min((one.decode_pages, one.block_pages) for one in group)
    base_s = median_s(
        [one for one in group if (one.decode_pages, one.block_pages) == short]
    )
    slopes = []
    for name, other in (
        ("decode_pages", "block_pages"),
        ("block_pages", "decode_pages"),
    ):
        longest = max(getattr(one, name) for one in group)
        least = min(getattr(one, name) for one in group)
        far = [
            one
            for one in group
            if getattr(one, name) == longest
            and getattr(one, other) == min(getattr(two, other) for two in group)
        ]
        span = longest - least
        slopes.append(max(median_s(far) - base_s, 0.0) / span if span and far else 0.0)
    return base_s, slopes[0], slopes[1]
