"""Fits bucket edges to a demand: the least padded step time within a program budget.

For given edges of one dimension, the cost of a table is a sum over intervals between
neighbouring edges of the other. So the best edges of that dimension are a shortest path
from the smallest to the largest count with a given number of hops, found exactly by
dynamic programming over `R + 1` row counts or `B + 1` block counts. The two dimensions
take turns until neither improves the table; no turn makes it worse.
"""

import dataclasses

import numpy as np

from jserve_sched.buckets.strategies import STRATEGIES
from jserve_sched.buckets.table import BucketTable
from jserve_sched.fitting.costs import BucketCosts
from jserve_sched.fitting.demand import StepDemand
from jserve_sched.timing.predictor import Predict

_MIN_ROWS = 2  # of an edge that the dynamic programme chooses
_LEAST_GAIN = 1e-12  # relative; smaller gains are rounding errors
_NUM_STARTS = 12  # number of tables that are improved


def shortest_chains(costs: np.ndarray, max_hops: int) -> list[tuple[int, ...]]:
    """Returns the cheapest chains from the first node to the last, by number of hops.

    Args:
      costs: `[M, M]`, the cost of a hop from i to j > i at `[i, j]`; infinite if it is
        not allowed. Entries on and below the diagonal are not read.

    Returns:
      A chain, without its first node, for each number of hops 1, 2, ... up to
      `M - 1`; numbers of hops without a chain are left out.
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
    """Returns `[M, M]`, the cost at edge j of the steps that demand i + 1 .. j.

    `matrix` is `[M, M]`, the seconds of steps that demand the row's count, at the edge
    of the column.
    """
    sums = np.cumsum(matrix, axis=0)
    hops: np.ndarray = np.diagonal(sums)[None] - sums
    return hops


def _limited_hops(matrix: np.ndarray) -> np.ndarray:
    """Returns `[M, M]`, the cost at edge i of the limited steps that demand i .. j - 1.

    Those with no edge but 0 below exceed their limit at edge j. The largest count is
    always an edge, so steps that demand it cost the same for all edges and are left
    out. `matrix` is `[M, M]` as in `_up_hops`.
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
    """Returns the best 1, 2, ... `max_edges` row edges for given block edges.

    None is 1, which depends on the next one: beside blocks that runs in its place.
    """
    matrix = np.sum([grid.by_row_edge(block_edges) for grid in costs.grids], axis=0)
    hops = _up_hops(matrix)
    hops[:, 1 : min(_MIN_ROWS, len(matrix) - 1)] = np.inf
    hops[0] += matrix[0]  # steps without decodes run at the first edge
    return shortest_chains(hops, max_edges)


def best_block_edges(
    costs: BucketCosts, row_edges: tuple[int, ...], max_edges: int
) -> list[tuple[int, ...]]:
    """Returns the best 2, 3, ... `max_edges` block edges, 0 first, for row edges."""
    hops = [
        (_limited_hops if grid.is_limited else _up_hops)(grid.by_block_edge(row_edges))
        for grid in costs.grids
    ]
    chains = shortest_chains(np.sum(hops, axis=0), max_edges - 1)
    return [(0, *chain) for chain in chains]


def improve(costs: BucketCosts, table: BucketTable) -> BucketTable:
    """Returns a table with equally many edges that neither dimension can improve."""
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

    The search starts from tables whose dimensions are each the best with the other
    unpadded, for every pair of numbers of edges; and from the tables of the strategies
    that need no fit, so that the result is never worse than that of a strategy with as
    many programs.

    Raises:
      ValueError: If `max_programs` is below 2, or the demand exceeds the limits.
    """
    if max_programs < 2:
        raise ValueError(
            f"max_programs={max_programs} is below 2: one with and one without prefill"
        )
    # Starts.
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
    # Improve the best of them.
    found = starts[:1] + [improve(costs, start) for start in starts[:_NUM_STARTS]]
    found += [
        dataclasses.replace(table, row_edges=(1, *table.row_edges))
        for table in found
        if table.row_edges[0] > 1 and table.max_rows > 2
    ]
    within = [table for table in found if table.num_programs <= max_programs]
    return min(within, key=costs.expected_s)


def _separate_fits(
    costs: BucketCosts, limits: BucketTable, max_programs: int
) -> list[BucketTable]:
    """Returns tables whose dimensions are each the best with the other unpadded.

    More edges are never worse, so for each number of row edges there is one table, with
    the most block edges.
    """
    all_rows = tuple(range(min(_MIN_ROWS, limits.max_rows), limits.max_rows + 1))
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
