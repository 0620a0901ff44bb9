"""Step costs of a GPU, interpolated from measured kernel times.

The one idea: a step's time is the sum of its kernels' times, and each kernel's time
was measured on a grid of what it depends on. The matrix products and what goes with
them depend on the tokens of the step, the head and the sampler on its sequences,
attention on (chunk, tokens cached before it, decodes, their mean context). Between
two measured points the time is taken to be straight; beyond the last, straight on.

Attention has a grid for each kind of batch, since its kernels differ: a lone decode
batch reads KV about twice as fast as a mixed one.

Several chunks in one batch were not measured. `ChunkRule` says as what single chunk
they are looked up.

Source: the composition is LLMServingSim's (Cho et al., ISPASS 2026), as are the
profiles this was written for. `N` is the number of steps asked about at once, `F` the
features of a step, `R` the rows of a measurement.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jserve_sched import features

# Kernels that run twice a layer, and once a step; the others run once a layer.
_TWICE_A_LAYER = ("layernorm",)
_ONCE_A_STEP = ("embedding", "final_layernorm")


class ChunkRule(enum.Enum):
    """The single chunk that stands for several, and the cache before it.

    For chunks of c tokens after u cached ones each; all rules are exact for one chunk.
    """

    SQUARES = "squares"  # sqrt(sum c^2), and sum c u / that: the same work
    SUMMED_CACHE = "summed_cache"  # sqrt(sum c^2), and sum u: Vidur's rule
    TOTAL = "total"  # sum c, and the mean of u weighted by c


class Grid:
    """Times on a grid, read by multilinear interpolation.

    Below the first point of an axis the first point holds. Beyond the last, the slope
    of the axis' last half goes on, or none if that falls.
    """

    def __init__(self, axes: Sequence[np.ndarray], values: np.ndarray):
        """Takes ascending `axes` and the values at their cross product.

        Raises:
          ValueError: if they do not match, an axis has less than two points or does
            not ascend, or a value is no time.
        """
        if values.shape != tuple(len(axis) for axis in axes):
            raise ValueError(
                f"values of shape {values.shape} do not fit axes of "
                f"{[len(axis) for axis in axes]} points"
            )
        for axis in axes:
            if len(axis) < 2 or (np.diff(axis) <= 0).any() or axis[0] < 0:
                raise ValueError(f"an axis must ascend over two points: {axis}")
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError("a grid holds a value that is missing or below 0")
        self._axes = []
        for dim, points in enumerate(axes):
            axis = points.astype(np.float64)
            half = int(axis.searchsorted(axis[-1] / 2, "right")) - 1
            half = min(max(half, 0), len(axis) - 2)
            last, before = values.take(-1, dim), values.take(half, dim)
            reach = axis[-1] / (axis[-1] - axis[half])
            beyond = last + np.maximum(last - before, 0.0) * reach
            values = np.concatenate((values, np.expand_dims(beyond, dim)), dim)
            self._axes.append(np.append(axis, 2 * axis[-1]))
        self._strides = [
            math.prod(values.shape[dim + 1 :]) for dim in range(values.ndim)
        ]
        # From the lowest corner of a cell to all: the first axis changes last.
        offsets = np.zeros(1, np.int64)
        for stride in reversed(self._strides):
            offsets = np.concatenate((offsets, offsets + stride))
        self._corners = offsets[:, None]
        self._flat = np.ascontiguousarray(values).reshape(-1)

    def at(self, *places: np.ndarray) -> np.ndarray:
        """Returns the times `[N]` at coordinates `[N]`, one for each axis.

        A place costs the same bit for bit whichever places are asked about beside it.
        """
        lowest: np.ndarray | int = 0
        shares = []
        for axis, stride, place in zip(self._axes, self._strides, places, strict=True):
            low = axis[1:-1].searchsorted(place, "right")
            start = axis[low]
            shares.append(np.maximum((place - start) / (axis[low + 1] - start), 0.0))
            lowest = lowest + low * stride
        times: np.ndarray = self._flat[lowest + self._corners]  # [2^axes, N]
        for share in shares:
            half = len(times) // 2
            times = times[:half] + share * (times[half:] - times[:half])
        found: np.ndarray = times[0]
        return found


def _cross_product(rows: np.ndarray) -> Grid:
    """Returns the grid of rows `[R, k + 1]`: k coordinates and the value."""
    axes = [np.unique(rows[:, dim]) for dim in range(rows.shape[1] - 1)]
    values = np.full([len(axis) for axis in axes], np.nan)
    where = tuple(axis.searchsorted(rows[:, dim]) for dim, axis in enumerate(axes))
    values[where] = rows[:, -1]
    return Grid(axes, values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelTimes:
    """Kernel times of one model on one GPU, seconds per step, all layers together.

    Attributes:
      tokens: all but attention, head and sampler; over the step's tokens.
      sequences: head and sampler; over the sequences of the step.
      decode: attention over (decodes, their mean context).
      prefill: attention over (chunk, tokens cached before it).
      mixed: attention over (chunk, cached before it, decodes, their mean context).
    """

    tokens: Grid
    sequences: Grid
    decode: Grid
    prefill: Grid
    mixed: Grid


def kernel_times(
    *,
    attention: np.ndarray,
    dense: Mapping[str, np.ndarray],
    per_sequence: Mapping[str, np.ndarray],
    num_layers: int,
) -> KernelTimes:
    """Returns the grids of a profile that is a full cross product in each kind.

    Times over tokens and sequences are made monotone, so that padding is never paid
    for with less time; measured curves dip by a few percent at most.

    Args:
      attention: `[R, 5]`, microseconds per layer in the last column, after chunk,
        tokens cached before it, decodes and their mean context; zeros where the
        batch has no chunk, or no decode.
      dense: kernel -> `[R, 2]` tokens and microseconds of one call.
      per_sequence: kernel -> `[R, 2]` sequences and microseconds of one call.
      num_layers: of the model.

    Raises:
      ValueError: if a cell is missing or kernels were measured at unlike points.
    """

    def curve(kernels: Mapping[str, np.ndarray], calls: Mapping[str, int]) -> Grid:
        first = next(iter(kernels.values()))
        total = np.zeros(len(first))
        for name, points in kernels.items():
            if not np.array_equal(points[:, 0], first[:, 0]):
                raise ValueError(f"kernel {name!r} was measured at other points")
            total += points[:, 1] * calls[name]
        return Grid([first[:, 0]], np.maximum.accumulate(total) * 1e-6)

    calls = dict.fromkeys(dense, num_layers)
    calls |= dict.fromkeys(_TWICE_A_LAYER, 2 * num_layers)
    calls |= dict.fromkeys(_ONCE_A_STEP, 1)
    seconds = attention * (1, 1, 1, 1, num_layers * 1e-6)
    has_chunk, has_decode = attention[:, 0] > 0, attention[:, 2] > 0
    return KernelTimes(
        tokens=curve(dense, calls),
        sequences=curve(per_sequence, dict.fromkeys(per_sequence, 1)),
        decode=_cross_product(seconds[~has_chunk & has_decode][:, 2:]),
        prefill=_cross_product(seconds[has_chunk & ~has_decode][:, (0, 1, 4)]),
        mixed=_cross_product(seconds[has_chunk & has_decode]),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableCost:
    """A `CostModel` that adds up kernel times.

    Padded rows and blocks are charged as tokens; attention for real rows only.

    Attributes:
      name: what a flag and a report call it.
      times: of its kernels.
      num_kv_tokens: tokens the KV pool holds.
      page_size: tokens in one KV page.
      max_num_seqs: most requests that run at once.
      max_num_batched_tokens: most token positions in a step.
      chunk_rule: as what single chunk several are looked up.
      skew: how far, 0 to 1, the time of decodes with unlike contexts is from that of
        as many with the mean context, towards that of as many with the longest.
    """

    name: str
    times: KernelTimes
    num_kv_tokens: int
    page_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    chunk_rule: ChunkRule = ChunkRule.SQUARES
    skew: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.skew <= 1.0:
            raise ValueError(f"skew={self.skew} is not in 0..1")

    def step_s(self, matrix: np.ndarray, block_tokens: int) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        kinds = features.scenarios(matrix)
        rows = matrix[:, features.NUM_ROWS] * (kinds != features.PURE_PREFILL)
        tokens = rows + matrix[:, features.NUM_BLOCKS] * block_tokens
        # Chunks are not counted in the features; there are at least so many.
        largest = np.maximum(matrix[:, features.LARGEST_CHUNK], 1.0)
        chunks = np.ceil(matrix[:, features.PREFILL_TOKENS] / largest)
        total: np.ndarray = self.times.tokens.at(tokens)
        total = total + self.times.sequences.at(rows + chunks)
        for kind in range(len(features.SCENARIOS)):
            chosen = kinds == kind
            if chosen.all():
                total += self._attention_s(kind, matrix)
            elif chosen.any():
                total[chosen] += self._attention_s(kind, matrix[chosen])
        return total

    def _attention_s(self, kind: int, matrix: np.ndarray) -> np.ndarray:
        """Returns seconds `[N]` of attention in steps `[N, F]` of one scenario."""
        if kind == features.PURE_PREFILL:
            return self.times.prefill.at(*self._one_chunk(matrix))
        num_decodes = np.maximum(matrix[:, features.NUM_DECODES], 1.0)
        places = [num_decodes]
        grid = self.times.decode
        if kind == features.MIXED:
            places = [*self._one_chunk(matrix), num_decodes]
            grid = self.times.mixed
        mean = matrix[:, features.DECODE_CONTEXT] / num_decodes
        seconds: np.ndarray = grid.at(*places, mean)
        if not self.skew:
            return seconds
        longest = np.maximum(matrix[:, features.DECODE_PAGES] * self.page_size, mean)
        seconds = seconds + self.skew * (grid.at(*places, longest) - seconds)
        return seconds

    def _one_chunk(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the chunk `[N]` and the tokens cached before it `[N]`."""
        squares = matrix[:, features.CHUNK_SQUARES]
        if self.chunk_rule is ChunkRule.TOTAL:
            chunk = matrix[:, features.PREFILL_TOKENS]
        else:
            chunk = np.sqrt(squares)
        if self.chunk_rule is ChunkRule.SUMMED_CACHE:
            context = matrix[:, features.DECODE_CONTEXT]
            return chunk, matrix[:, features.CACHED_TOKENS] - context
        return chunk, (matrix[:, features.PREFILL_WORK] - squares) / chunk
