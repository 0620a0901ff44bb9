"""The cost of a demand under a bucket table: the expected padded time of a step.

A step-time model is asked once for every bucket that a table might have. After that,
the cost of any table is a sum over look-ups, so that thousands can be compared.

Steps are put into groups of similar contexts (KV pages, by factors of four). A group's
work is that of its mean step, and only the bucket varies. This is exact if the step
time is a function of the bucket plus a linear function of the work.

A step that rounds up to edge j costs `T(j)`. A limited step with a demand of b blocks
runs on the edge i below, `b / i` times as often for the same work, and costs
`T(i) b / i`. If no edge but 0 is below b, it must exceed its limit: it costs `T(j)`,
plus the excess `T(j) - T(b)` once more.

There are `G` groups, `R` decode rows and `B` prefill blocks; arrays `[G, R + 1, B + 1]`
are over all counts from 0 to these.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from jserve_sched.buckets.table import BucketTable
from jserve_sched.fitting.demand import StepDemand, bucket_features
from jserve_sched.timing.predictor import Predict

_PAGES_FACTOR = 4.0  # between the longest and the shortest contexts of a group


@dataclasses.dataclass(frozen=True, eq=False)
class CostGrid:
    """The steps that round the same way, and the time of every bucket for them.

    Attributes:
      is_limited: Whether these steps round down.
      weight: `[G, R + 1, B + 1]` share of the steps with a demand of this.
      time_s: `[G, R + 1, B + 1]` time of a bucket for the group's mean step, seconds.
    """

    is_limited: bool
    weight: np.ndarray
    time_s: np.ndarray

    def runs(self, block_edges: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Returns how often each block edge runs for each demand; see the module.

        Returns:
          Block counts `[C]`, and `[B + 1, C]`, how often each runs for a step with a
          demand of b blocks. It is below 0 for the `T(b)` in an excess `T(j) - T(b)`.
        """
        edges = np.array(block_edges)
        wanted = np.arange(self.weight.shape[2])
        runs = np.zeros((len(wanted), len(wanted)))
        if self.is_limited:
            below = edges[np.searchsorted(edges, wanted, side="right") - 1]
            runs[wanted, below] = np.where(below, wanted / np.maximum(below, 1), 0.0)
            runs[0, 0] = 1.0
            short = wanted[1 : edges[1]]
            runs[short, edges[1]] = 2.0
            runs[short, short] = -1.0
        else:
            runs[wanted, edges[np.searchsorted(edges, wanted)]] = 1.0
        columns = np.flatnonzero(runs.any(axis=0))
        return columns, runs[:, columns]

    def expected_s(self, table: BucketTable) -> float:
        """Returns these steps' part of the mean padded step time, seconds."""
        weight, time_s = self._at_rows(table)
        columns, runs = self.runs(table.block_edges)
        return float(np.sum((weight @ runs) * time_s[:, :, columns]))

    def by_row_edge(self, block_edges: tuple[int, ...]) -> np.ndarray:
        """Returns `[2, R + 1, R + 1]`, seconds of steps that demand r rows, at edge r'.

        First the steps without prefill, then those with prefill.
        """
        columns, runs = self.runs(block_edges)
        time_s = self.time_s[:, :, columns]
        parts = (
            self.weight[:, :, demand] @ runs[demand]
            for demand in (slice(1), slice(1, None))
        )
        return np.stack(
            [np.tensordot(part, time_s, axes=((0, 2), (0, 2))) for part in parts]
        )

    def by_block_edge(self, table: BucketTable) -> np.ndarray:
        """Returns `[B + 1, B + 1]`, seconds of steps that demand b blocks, at b'."""
        return np.tensordot(*self._at_rows(table), axes=((0, 1), (0, 1)))

    def _at_rows(self, table: BucketTable) -> tuple[np.ndarray, np.ndarray]:
        """Returns weights and times `[G, K, B + 1]` with rows rounded up to K edges."""
        edges = table.row_edges
        starts = [0, *(edge + 1 for edge in edges[:-1])]
        weight = np.add.reduceat(self.weight, starts, axis=1)
        beside_blocks = [table.fit(edge, 1).num_rows for edge in edges]
        parts = self.time_s[:, list(edges), :1], self.time_s[:, beside_blocks, 1:]
        return weight, np.concatenate(parts, axis=2)


class BucketCosts:
    """The costs of tables with the same largest edges for one demand.

    Attributes:
      grids: Grid of the steps that round up, and of those that round down; one without
        steps is left out.
    """

    def __init__(
        self,
        demand: StepDemand,
        step_s: Predict,
        table: BucketTable,
        *,
        page_size: int,
    ):
        """Asks the step-time model about every bucket up to the edges of `table`.

        Raises:
          ValueError: If a step exceeds the largest edges, or a time is invalid.
        """
        most = np.max(demand.rows), np.max(demand.blocks)
        if most[0] > table.max_rows or most[1] > table.max_blocks:
            raise ValueError(
                f"the demand has steps of {most[0]} rows and of {most[1]} blocks; the "
                f"largest edges are {table.max_rows} and {table.max_blocks}"
            )
        demand = demand.scaled(1.0)
        grids = []
        for is_limited in (False, True):
            groups = list(_groups(demand.where(demand.is_limited == is_limited)))
            if groups:
                times_s = [_time_s(one, step_s, table, page_size) for one in groups]
                grid = CostGrid(is_limited, np.zeros_like(times_s), np.stack(times_s))
                for weight, one in zip(grid.weight, groups, strict=True):
                    np.add.at(weight, (one.rows, one.blocks), one.weight)
                grids.append(grid)
        self.grids = tuple(grids)

    def expected_s(self, table: BucketTable) -> float:
        """Returns the mean padded time of a step under a table, seconds."""
        return sum(grid.expected_s(table) for grid in self.grids)

    def summary(self, table: BucketTable) -> dict[str, float]:
        """Returns the mean padded time of a step, seconds, and the share of padding.

        The share counts only steps that round up.
        """
        up = [grid for grid in self.grids if not grid.is_limited]
        padded_s = sum(grid.expected_s(table) for grid in up)
        used_s = sum(float(np.sum(grid.weight * grid.time_s)) for grid in up)
        share = 1.0 - used_s / padded_s if padded_s else 0.0
        return {"expected_s": self.expected_s(table), "pad_share_time": share}


def _groups(demand: StepDemand) -> Iterator[StepDemand]:
    """Yields the groups of steps with similar contexts."""
    keys = []
    for pages, count in (
        (demand.decode_pages, demand.rows),
        (demand.block_pages, demand.blocks),
    ):
        each = np.maximum(pages / np.maximum(count, 1), 1)
        size = np.ceil(np.log(each) / np.log(_PAGES_FACTOR) - 1e-9)
        keys.append(size + (count > 0))
    kinds, places = np.unique(np.stack(keys, 1), axis=0, return_inverse=True)
    for group in range(len(kinds)):
        yield demand.where(places.reshape(-1) == group)


def _time_s(
    demand: StepDemand, step_s: Predict, table: BucketTable, page_size: int
) -> np.ndarray:
    """Returns `[R + 1, B + 1]`, seconds of every bucket for a group's mean step."""
    shape = table.max_rows + 1, table.max_blocks + 1
    rows, blocks = (one.reshape(-1) for one in np.indices(shape))

    def mean(values: np.ndarray) -> float:
        return float(np.average(values, weights=demand.weight))

    used_blocks: np.ndarray | float = mean(demand.blocks)
    block_pages: np.ndarray | float = mean(demand.block_pages)
    if demand.is_limited[0]:  # it fills every bucket
        block_pages = block_pages / max(used_blocks, 1) * blocks
        used_blocks = blocks
    time_s = step_s(
        bucket_features(
            rows,
            blocks,
            used_rows=mean(demand.rows),
            used_blocks=used_blocks,
            decode_pages=mean(demand.decode_pages),
            block_pages=block_pages,
            page_size=page_size,
            block_tokens=table.block_tokens,
        )
    )
    if not np.all(np.isfinite(time_s) & (time_s >= 0)):
        raise ValueError(f"the step-time model says {np.min(time_s)} s for a step")
    # A larger bucket is taken to be never faster, even if the model predicts it.
    grid = np.maximum.accumulate(time_s.reshape(shape), axis=0)
    return np.maximum.accumulate(grid, axis=1)
