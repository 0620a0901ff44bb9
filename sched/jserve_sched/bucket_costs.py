"""What a demand costs under a bucket table: the mean padded step time.

The one idea: a step-time model is asked once for every shape that a table might
compile. After that, the cost of any table is a sum over look-ups, so that thousands
of tables can be compared.

Steps are put into groups of like contexts (KV pages, by factors of four); a group's
work is that of its mean step, and only the shape varies: what padding costs. For a
step time that is a function of the shape plus one linear in the work, which the cost
models and the linear predictor are, this loses nothing.

A step that rounds up costs `T(j)`, j its edge. A limited one that wants b blocks sits
on the edge i below and has to run `b / i` times as often for the same work:
`T(i) b / i`. With no edge but 0 below b it must break its limit: `T(j)`, and the
excess `T(j) - T(b)` counts again.

`G` groups, `R` decode rows and `B` prefill blocks: shapes `[G, R + 1, B + 1]` are over
all counts from 0 to the most.
"""

import dataclasses

import numpy as np

from jserve_sched.buckets import BucketTable
from jserve_sched.step_demand import StepDemand, StepTimes, shape_features

_PAGES_FACTOR = 4.0  # pages alike, for a group


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CostGrid:
    """Steps of one kind, limited or not, by wish; and what shapes cost them.

    Attributes:
      weight: `[G, R + 1, B + 1]` steps that want so many rows and blocks, a share.
      time_s: `[G, R + 1, B + 1]` time of a shape for the group's mean step, seconds.
    """

    weight: np.ndarray
    time_s: np.ndarray

    def by_row_edge(self, row_edges: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Returns weights and times `[G, K, B + 1]` with rows rounded up to K edges."""
        starts = [0, *(edge + 1 for edge in row_edges[:-1])]
        weight = np.add.reduceat(self.weight, starts, axis=1)
        return weight, self.time_s[:, list(row_edges)]


def _pages(pages: np.ndarray, is_used: np.ndarray) -> np.ndarray:
    """Returns a page or more where there is a row of the kind, and none elsewhere."""
    return np.where(is_used, np.maximum(pages, 1), 0)


def _groups(demand: StepDemand) -> np.ndarray:
    """Returns the group of each step, `[N]`, counted from 0."""
    keys = [
        np.ceil(np.log(np.maximum(pages, 1)) / np.log(_PAGES_FACTOR) - 1e-9) + is_used
        for pages, is_used in (
            (demand.decode_pages, demand.rows > 0),
            (demand.block_pages, demand.last_block > 0),
        )
    ]
    _, places = np.unique(np.stack(keys, 1), axis=0, return_inverse=True)
    groups: np.ndarray = places.reshape(-1)
    return groups


def _time_s(
    demand: StepDemand,
    step_s: StepTimes,
    *,
    max_rows: int,
    max_blocks: int,
    page_size: int,
    block_tokens: int,
) -> np.ndarray:
    """Returns `[R + 1, B + 1]` seconds of every shape, for steps of one group.

    A larger shape is never quicker, whatever the model says.
    """
    rows, blocks = (
        one.reshape(-1)
        for one in np.meshgrid(
            np.arange(max_rows + 1), np.arange(max_blocks + 1), indexing="ij"
        )
    )
    middle = (demand.blocks + demand.last_block) / 2
    is_limited = bool(demand.is_limited[0])

    def mean(values: np.ndarray) -> float:
        return float(np.average(values, weights=demand.weight))

    time_s = step_s(
        shape_features(
            rows,
            blocks,
            used_rows=mean(demand.rows),
            used_blocks=blocks if is_limited else mean(middle),
            decode_pages=np.ceil(mean(_pages(demand.decode_pages, demand.rows > 0))),
            block_pages=np.ceil(mean(_pages(demand.block_pages, middle > 0))),
            page_size=page_size,
            block_tokens=block_tokens,
        )
    )
    if not np.all(np.isfinite(time_s) & (time_s >= 0)):
        raise ValueError(f"the step-time model says {np.min(time_s)} s for a step")
    grid = time_s.reshape(max_rows + 1, max_blocks + 1)
    return np.maximum.accumulate(np.maximum.accumulate(grid, axis=0), axis=1)


def _weight(demand: StepDemand, max_rows: int, max_blocks: int) -> np.ndarray:
    """Returns `[R + 1, B + 1]` of the weight of each wish."""
    share = demand.weight / (demand.last_block - demand.blocks + 1)
    edges = np.zeros((max_rows + 1, max_blocks + 2))
    np.add.at(edges, (demand.rows, demand.blocks), share)
    np.add.at(edges, (demand.rows, demand.last_block + 1), -share)
    weight = np.cumsum(edges, axis=1)[:, :-1]
    return np.where(weight > 1e-12 * np.max(weight), weight, 0.0)


class BucketCosts:
    """The costs of tables of one size for one demand.

    Attributes:
      max_rows: the largest row edge of the tables.
      max_blocks: the largest block edge of the tables.
      block_tokens: tokens in one of their prefill blocks, Q.
      up: the steps that round up; None without any.
      limited: the steps that round down; None without any.
    """

    def __init__(
        self,
        demand: StepDemand,
        step_s: StepTimes,
        *,
        max_rows: int,
        max_blocks: int,
        block_tokens: int,
        page_size: int,
    ):
        """Asks the step-time model about every shape.

        Args:
          demand: the steps.
          step_s: how long steps take.
          max_rows: the largest row edge of the tables.
          max_blocks: the largest block edge of the tables.
          block_tokens: tokens in one of their prefill blocks, Q.
          page_size: tokens in one KV page.

        Raises:
          ValueError: if a step does not fit the largest edges, or a time is no time.
        """
        self.max_rows, self.max_blocks = max_rows, max_blocks
        self.block_tokens = block_tokens
        # The step that a limited one wants is within the limits, or it would not run.
        if np.max(demand.rows) > max_rows or np.max(demand.last_block) > max_blocks:
            raise ValueError(
                f"the demand has steps of {np.max(demand.rows)} rows and of "
                f"{np.max(demand.last_block)} blocks; the largest edges are {max_rows} "
                f"and {max_blocks}"
            )
        demand = demand.scaled(1.0)
        groups = _groups(demand)

        def grid(is_limited: bool) -> CostGrid | None:
            parts = [
                demand.where(mask)
                for group in range(int(np.max(groups)) + 1)
                if np.any(mask := (groups == group) & (demand.is_limited == is_limited))
            ]
            if not parts:
                return None
            times_s = [
                _time_s(
                    part,
                    step_s,
                    max_rows=max_rows,
                    max_blocks=max_blocks,
                    page_size=page_size,
                    block_tokens=block_tokens,
                )
                for part in parts
            ]
            weights = [_weight(part, max_rows, max_blocks) for part in parts]
            return CostGrid(weight=np.stack(weights), time_s=np.stack(times_s))

        self.up, self.limited = grid(False), grid(True)

    def expected_s(self, table: BucketTable) -> float:
        """Returns the mean padded time of a step under a table, seconds.

        Raises:
          ValueError: if the table's largest edges are others than these costs'.
        """
        self._check(table)
        return float(np.sum(self.row_costs(table.block_edges, table.row_edges)))

    def row_costs(
        self, block_edges: tuple[int, ...], row_edges: tuple[int, ...]
    ) -> np.ndarray:
        """Returns `[K]`: what the steps at each row edge cost, seconds of the mean."""
        total = np.zeros(len(row_edges))
        for grid, coefficients in (
            (self.up, up_coefficients),
            (self.limited, limited_coefficients),
        ):
            if grid is not None:
                weight, time_s = grid.by_row_edge(row_edges)
                columns, parts = coefficients(weight, block_edges)
                total += np.einsum("gkc,gkc->k", parts, time_s[:, :, columns])
        return total

    def row_matrix(self, block_edges: tuple[int, ...]) -> np.ndarray:
        """Returns `[R + 1, R + 1]`: cost of the steps that want r rows, run with r'."""
        size = self.max_rows + 1
        total = np.zeros((size, size))
        for grid, coefficients in (
            (self.up, up_coefficients),
            (self.limited, limited_coefficients),
        ):
            if grid is not None:
                columns, parts = coefficients(grid.weight, block_edges)
                total += np.tensordot(
                    parts, grid.time_s[:, :, columns], axes=((0, 2), (0, 2))
                )
        return total

    def pad_share(self, table: BucketTable) -> float:
        """Returns the share of time that the steps that round up spend on padding.

        Raises:
          ValueError: if the table's largest edges are others than these costs'.
        """
        self._check(table)
        if self.up is None:
            return 0.0
        weight, time_s = self.up.by_row_edge(table.row_edges)
        columns, parts = up_coefficients(weight, table.block_edges)
        padded_s = float(np.sum(parts * time_s[:, :, columns]))
        return 1.0 - float(np.sum(self.up.weight * self.up.time_s)) / padded_s

    def _check(self, table: BucketTable) -> None:
        found = (table.max_rows, table.max_blocks, table.block_tokens)
        known = (self.max_rows, self.max_blocks, self.block_tokens)
        if found != known:
            raise ValueError(
                f"the table's largest edges and block_tokens are {found}, not {known}"
            )


def costs_of(
    demand: StepDemand, step_s: StepTimes, table: BucketTable, *, page_size: int
) -> BucketCosts:
    """Returns what a demand costs under tables with the largest edges of `table`.

    Raises:
      ValueError: as `BucketCosts` does.
    """
    return BucketCosts(
        demand,
        step_s,
        max_rows=table.max_rows,
        max_blocks=table.max_blocks,
        block_tokens=table.block_tokens,
        page_size=page_size,
    )


def up_coefficients(
    weight: np.ndarray, block_edges: tuple[int, ...]
) -> tuple[list[int], np.ndarray]:
    """Returns how often which shape runs, for steps that round up.

    Args:
      weight: `[G, K, B + 1]` by blocks wanted.
      block_edges: from 0 to B.

    Returns:
      Columns, C block counts, and the times each runs, `[G, K, C]`.
    """
    starts = [0, *(edge + 1 for edge in block_edges[:-1])]
    return list(block_edges), np.add.reduceat(weight, starts, axis=2)


def limited_coefficients(
    weight: np.ndarray, block_edges: tuple[int, ...]
) -> tuple[list[int], np.ndarray]:
    """Returns how often which shape runs, for limited steps; see the module.

    Args:
      weight: `[G, K, B + 1]` by blocks wanted.
      block_edges: from 0 to B.

    Returns:
      Columns, C block counts, and the times each runs, `[G, K, C]`; below 0 where
      the time of what was wanted is taken off an excess.
    """
    first = block_edges[1]
    blocks = np.arange(weight.shape[2])
    runs = np.add.reduceat(weight * blocks, block_edges, axis=2)[:, :, 1:]
    runs = runs / np.array(block_edges[1:])
    runs[:, :, 0] += 2.0 * np.sum(weight[:, :, 1:first], axis=2)
    wishes = np.concatenate((weight[:, :, :1], -weight[:, :, 1:first]), axis=2)
    return [*range(first), *block_edges[1:]], np.concatenate((wishes, runs), axis=2)
