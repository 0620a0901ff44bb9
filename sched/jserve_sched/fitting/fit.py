"""Fits bucket edges to a demand: the least padded step time within a program budget.

With the edges of one dimension given, the cost of a table is a sum over intervals
between neighbouring edges of the other. So the best edges of one dimension are a
shortest path from the smallest to the largest count with a given number of hops:
exact, by dynamic programming over `R + 1` row counts or `B + 1` block counts. The two
dimensions take turns until neither finds better; no turn ever makes it worse.
"""

import dataclasses

import numpy as np

from jserve_sched.buckets.strategies import MIN_ROWS, STRATEGIES
from jserve_sched.buckets.table import BucketTable
from jserve_sched.fitting.costs import BucketCosts
from jserve_sched.fitting.demand import StepDemand
from jserve_sched.timing.predictor import Predict

_LEAST_GAIN = 1e-12  # relative; less is rounding
_NUM_STARTS = 12  # tables from which the dimensions take turns


def shortest_chains(costs: np.ndarray, max_hops: int) -> list[tuple[int, ...]]:
    """Returns the cheapest chains from the first node to the last, by number of hops.

    Args:
      costs: `[M, M]`, of a hop from i to j > i at `[i, j]`; infinite where there is
        none. What lies on or below the diagonal is not read.

    Returns:
      A chain without its first node for 1, 2, ... hops, at most `M - 1`; none where no
      chain with that number of hops exists.
    """
    costs = np.where(np.triu(np.ones(costs.shape, bool), 1), costs, np.inf)
    best = costs[0]
    came_from: list[np.ndarray] = []
    chains = []
    for num_hops in range(1, min(max_hops, len(costs) - 1) + 1):
        if num_hops > 1:
            through = best[:, None] + costs
            came_from.append(np.argmin(through, axis=0))
            best = np.min(through, axis=0)
        if np.isfinite(best[-1]):
            chain = [len(costs) - 1]
            for places in reversed(came_from):
                chain.append(int(places[chain[-1]]))
            chains.append(tuple(reversed(chain)))
    return chains


def _up_hops(matrix: np.ndarray) -> np.ndarray:
    """Returns `[M, M]` the cost at edge j of the steps that want i + 1 .. j.

    `matrix` is `[M, M]` seconds of steps that want the row's count, at the column's.
    """
    sums = np.cumsum(matrix, axis=0)
    hops: np.ndarray = np.diagonal(sums)[None] - sums
    return hops


def _limited_hops(matrix: np.ndarray) -> np.ndarray:
    """Returns `[M, M]` the cost at edge i of the limited steps that want i .. j - 1.

    Those at no edge but 0 break their limit at edge j. The largest count is an edge
    always, so what wants it costs the same however the edges lie and is left out.
    `matrix` is `[M, M]` as in `_up_hops`.
    """
    counts = np.arange(len(matrix))
    repeated = matrix * counts[:, None] / np.maximum(counts, 1)
    sums = np.cumsum(repeated, axis=0) - repeated
    hops: np.ndarray = sums.T - np.diagonal(sums)[:, None]
    own = np.diagonal(matrix)
    own_sums = np.cumsum(own) - own - own[0]
    sums = np.cumsum(matrix, axis=0) - matrix
    hops[0, 1:] = (2.0 * (np.diagonal(sums) - matrix[0]) - own_sums)[1:]
    return hops


def best_row_edges(
    costs: BucketCosts, block_edges: tuple[int, ...], max_edges: int
) -> list[tuple[int, ...]]:
    """Returns the best row edges beside some block edges, for 1, 2, ... edges."""
    matrix = sum(grid.by_row_edge(block_edges) for grid in costs.grids)
    assert isinstance(matrix, np.ndarray)
    hops = _up_hops(matrix)
    hops[0] += matrix[0]  # the first edge takes the steps without decodes along
    hops[:, 1 : min(MIN_ROWS, len(matrix) - 1)] = np.inf
    return shortest_chains(hops, max_edges)


def best_block_edges(
    costs: BucketCosts, row_edges: tuple[int, ...], max_edges: int
) -> list[tuple[int, ...]]:
    """Returns the best block edges beside some row edges, for 2, 3, ... with the 0."""
    hops = sum(
        (_limited_hops if grid.is_limited else _up_hops)(grid.by_block_edge(row_edges))
        for grid in costs.grids
    )
    assert isinstance(hops, np.ndarray)
    return [(0, *chain) for chain in shortest_chains(hops, max_edges - 1)]


def improve(costs: BucketCosts, table: BucketTable) -> BucketTable:
    """Returns a table with as many edges that no change in one dimension improves."""
    while True:
        blocks = best_block_edges(costs, table.row_edges, len(table.block_edges))[-1]
        rows = best_row_edges(costs, blocks, len(table.row_edges))[-1]
        found = dataclasses.replace(table, row_edges=rows, block_edges=blocks)
        if costs.expected_s(found) >= costs.expected_s(table) * (1 - _LEAST_GAIN):
            return table
        table = found


def fit_buckets(
    demand: StepDemand,
    step_s: Predict,
    limits: BucketTable,
    *,
    page_size: int,
    max_programs: int,
) -> BucketTable:
    """Returns the table of least expected step time within `max_programs`.

    It has the largest edges of `limits`.

    Starts are, for every pair of numbers of edges, the best edges of each dimension
    with the other unpadded; and the tables of the strategies that need no fit, so that
    the table is never worse than that of a strategy with no more programs.

    Raises:
      ValueError: If `max_programs` is below 2, or the demand exceeds the limits.
    """
    if max_programs < 2:
        raise ValueError(f"max_programs={max_programs} is below 2: with and without")
    most_tokens = limits.max_rows + limits.max_blocks * limits.block_tokens
    rules = [
        strategy().table(
            max_num_seqs=limits.max_rows,
            max_num_batched_tokens=most_tokens,
            block_tokens=limits.block_tokens,
        )
        for strategy in STRATEGIES.values()
    ]
    costs = BucketCosts(demand, step_s, limits, page_size=page_size)
    starts = _separate_fits(costs, limits, max_programs)
    starts += [table for table in rules if table.num_programs <= max_programs]
    starts.sort(key=costs.expected_s)
    found = starts[:1] + [improve(costs, start) for start in starts[:_NUM_STARTS]]
    within = [table for table in found if table.num_programs <= max_programs]
    return min(within, key=costs.expected_s)


def _separate_fits(
    costs: BucketCosts, limits: BucketTable, max_programs: int
) -> list[BucketTable]:
    """Returns tables whose dimensions are each the best with the other unpadded.

    More edges are never worse, so of each number of row edges only the table with the
    most block edges is returned.
    """
    all_rows = tuple(range(min(MIN_ROWS, limits.max_rows), limits.max_rows + 1))
    all_blocks = tuple(range(limits.max_blocks + 1))
    rows = best_row_edges(costs, all_blocks, max_programs // 2)
    blocks = best_block_edges(costs, all_rows, max_programs)
    return [
        dataclasses.replace(
            limits,
            row_edges=edges,
            block_edges=blocks[min(max_programs // len(edges) - 2, len(blocks) - 1)],
        )
        for edges in rows
    ]
