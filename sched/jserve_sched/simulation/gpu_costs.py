"""Step costs of a GPU, interpolated from measured kernel times.

A step's time is the sum of its kernels' times, each measured on a grid of the sizes
that it depends on. Attention has a grid for each kind of batch, since its kernels
differ: a decode-only batch reads KV about twice as fast as a mixed one. Batches with
several chunks were not measured; they are looked up as the single chunk that does the
same work.

Source: the composition and the profiles are LLMServingSim's (Cho et al., ISPASS 2026).
`N` is the number of steps priced together, `F` the features of a step, `R` the rows of
a measurement.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jserve_sched.simulation.cost_model import CostModel
from jserve_sched.steps import features

# Kernels that run twice per layer, and once per step; others run once per layer.
_TWICE_A_LAYER = ("layernorm",)
_ONCE_A_STEP = ("embedding", "final_layernorm")
_REACH = 64  # length of an axis, in multiples of its last point; no step is beyond


class Grid:
    """Times on a grid, read by multilinear interpolation.

    Below the first point of an axis the value of the first point holds. Beyond the last
    point, the slope over the last half of the axis continues, unless it falls.
    """

    def __init__(self, axes: Sequence[np.ndarray], values: np.ndarray):
        """Makes a grid, and extends it beyond the last points.

        Args:
          axes: Ascending points of each axis, at least two.
          values: Times at all combinations of the points; one dimension for each axis.

        Raises:
          ValueError: If a value is missing or negative.
        """
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError("a grid holds a value that is missing or below 0")
        self._axes = []
        for dim, axis in enumerate(axes):
            half = int(axis.searchsorted(axis[-1] / 2, "right")) - 1
            half = min(max(half, 0), len(axis) - 2)
            last, before = values.take([-1], dim), values.take([half], dim)
            reach = (_REACH - 1) * axis[-1] / (axis[-1] - axis[half])
            beyond = last + np.maximum(last - before, 0.0) * reach
            values = np.concatenate((values, beyond), dim)
            self._axes.append(np.append(axis, _REACH * axis[-1]))
        self._values = values

    def at(self, *places: np.ndarray) -> np.ndarray:
        """Returns the times `[N]` at coordinates `[N]`, one for each axis.

        A place's time is bit for bit the same whichever places are looked up with it.
        """
        # SciPy takes a second to import. Its RegularGridInterpolator takes 5 to 14
        # times as long for four axes.
        from scipy.ndimage import map_coordinates

        cells = [
            np.interp(place, axis, np.arange(len(axis)))
            for place, axis in zip(places, self._axes, strict=True)
        ]
        times: np.ndarray = map_coordinates(self._values, cells, order=1)
        return times


def _cross_product(rows: np.ndarray) -> Grid:
    """Returns the grid of measurements `[R, k + 1]`: k coordinates and the value."""
    axes, places = zip(
        *(np.unique(column, return_inverse=True) for column in rows[:, :-1].T),
        strict=True,
    )
    values = np.full([len(axis) for axis in axes], np.nan)
    values[places] = rows[:, -1]
    return Grid(axes, values)


def kernel_times(
    *,
    attention: np.ndarray,
    dense: Mapping[str, np.ndarray],
    per_sequence: Mapping[str, np.ndarray],
    num_layers: int,
) -> dict[str, Grid]:
    """Returns the grids of a `TableCost`, by name, from measured kernel times.

    Times over tokens and sequences are made monotone, so that padding never makes a
    step faster; measured curves dip by a few percent at most.

    Args:
      attention: `[R, 5]`: tokens of the chunk, tokens cached before it, decodes, their
        mean context, and microseconds per layer. The first or second pair is 0 in a
        batch without a chunk or without decodes. Each kind of batch is measured at all
        combinations of its points.
      dense: Kernel -> `[R, 2]`, tokens and microseconds of one call.
      per_sequence: Kernel -> `[R, 2]`, sequences and microseconds of one call.
      num_layers: Number of the model's layers.

    Raises:
      ValueError: If a combination is missing, or kernels were measured at different
        points.
    """

    def curve(kernels: Mapping[str, np.ndarray], calls: Mapping[str, int]) -> Grid:
        points = next(iter(kernels.values()))[:, 0]
        for name, rows in kernels.items():
            if not np.array_equal(rows[:, 0], points):
                raise ValueError(f"kernel {name!r} was measured at other points")
        total = sum(calls[name] * rows[:, 1] for name, rows in kernels.items())
        return Grid([points], np.maximum.accumulate(total) * 1e-6)

    calls = dict.fromkeys(dense, num_layers)
    calls |= dict.fromkeys(_TWICE_A_LAYER, 2 * num_layers)
    calls |= dict.fromkeys(_ONCE_A_STEP, 1)
    seconds = attention * (1, 1, 1, 1, num_layers * 1e-6)
    has_chunk, has_decode = attention[:, 0] > 0, attention[:, 2] > 0
    return {
        "tokens": curve(dense, calls),
        "sequences": curve(per_sequence, dict.fromkeys(per_sequence, 1)),
        "decode": _cross_product(seconds[~has_chunk & has_decode][:, 2:]),
        "prefill": _cross_product(seconds[has_chunk & ~has_decode][:, (0, 1, 4)]),
        "mixed": _cross_product(seconds[has_chunk & has_decode]),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableCost(CostModel):
    """A machine that adds up kernel times, in seconds for all layers together.

    Padded rows and blocks count as tokens, but attention is of real rows only.

    Attributes:
      tokens: Time of all but attention, head and sampler, over a step's tokens.
      sequences: Time of head and sampler, over a step's sequences.
      decode: Attention time over (decodes, their mean context).
      prefill: Attention time over (tokens of the chunk, tokens cached before it).
      mixed: Attention time over (chunk, cached before it, decodes, mean context).
      skew: Effect of different contexts on the attention time of decodes: the share, 0
        to 1, of the way from the time at their mean context to that at their longest.
    """

    tokens: Grid
    sequences: Grid
    decode: Grid
    prefill: Grid
    mixed: Grid
    skew: float = 0.0

    def step_s(self, matrix: np.ndarray, block_tokens: int) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        kinds = features.scenarios(matrix)
        rows = matrix[:, features.NUM_ROWS] * (kinds != features.PURE_PREFILL)
        tokens = rows + matrix[:, features.NUM_BLOCKS] * block_tokens
        # The features do not have the number of chunks; this is the least possible.
        largest = np.maximum(matrix[:, features.LARGEST_CHUNK], 1.0)
        chunks = np.ceil(matrix[:, features.PREFILL_TOKENS] / largest)
        total = self.tokens.at(tokens)
        total += self.sequences.at(rows + chunks)
        for kind in np.unique(kinds):
            chosen = kinds == kind
            total[chosen] += self._attention_s(kind, matrix[chosen])
        return total

    def _attention_s(self, kind: int, matrix: np.ndarray) -> np.ndarray:
        """Returns seconds `[N]` of attention in steps `[N, F]` of one scenario."""
        places: list[np.ndarray] = []
        if kind != features.PURE_DECODE:
            # For chunks of c tokens after u cached ones each, the single chunk of the
            # same work has sqrt(sum c^2) tokens after (sum c u) / sqrt(sum c^2).
            squares = matrix[:, features.CHUNK_SQUARES]
            chunk = np.sqrt(squares)
            places += [chunk, (matrix[:, features.PREFILL_WORK] - squares) / chunk]
        if kind == features.PURE_PREFILL:
            return self.prefill.at(*places)
        grid = self.mixed if places else self.decode
        num_decodes = np.maximum(matrix[:, features.NUM_DECODES], 1.0)
        mean = matrix[:, features.DECODE_CONTEXT] / num_decodes
        total_s = grid.at(*places, num_decodes, mean)
        if self.skew:
            pages = matrix[:, features.LONGEST_DECODE]
            longest = np.maximum(pages * self.page_size, mean)
            longest_s = grid.at(*places, num_decodes, longest)
            total_s += self.skew * (longest_s - total_s)
        return total_s
