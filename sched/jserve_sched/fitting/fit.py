"""Fits bucket edges to a demand: the least padded step time within a program budget.

For given edges of one dimension, the cost of a table is a sum over intervals between
neighbouring edges of the other. So the best edges of that dimension are a shortest path
from the smallest to the largest count whose edges make a given number of programs,
found exactly by dynamic programming over `R + 1` row counts or `B + 1` block counts.
The two dimensions take turns until neither improves the table; no turn makes it worse.
"""

import dataclasses

import numpy as np

from jserve_sched.buckets.strategies import STRATEGIES
from jserve_sched.buckets.table import BucketTable
from jserve_sched.fitting.costs import BucketCosts
from jserve_sched.fitting.demand import StepDemand
from jserve_sched.timing.predictor import Predict

_LEAST_GAIN = 1e-12  # relative; smaller gains are rounding errors
_NUM_STARTS = 12  # number of tables that are improved


def shortest_chains(
    costs: np.ndarray, prices: np.ndarray, max_price: int
) -> list[tuple[int, ...]]:
    """Returns the cheapest chains from the first node to the last, by their price.

    Args:
      costs: `[M, M]`, the cost of a hop from i to j > i at `[i, j]`; infinite if it is
        not allowed. Entries on and below the diagonal are not read.
      prices: `[M]` whole numbers above 0, the price of a hop to each node.

    Returns:
      A chain, without its first node, for each price 1, 2, ... `max_price`; prices
      without a chain are left out.
    """
    costs = np.where(np.triu(np.ones(costs.shape, bool), 1), costs, np.inf)
    last = len(costs) - 1
    best = np.full((max_price + 1, len(costs)), np.inf)
    best[0, 0] = 0.0
    came_from = np.zeros(best.shape, np.int64)
    chains = []
    for price in range(1, max_price + 1):
        left = price - prices
        before = np.where(left >= 0, best[left].T, np.inf)
        through = before + costs
        came_from[price] = np.argmin(through, axis=0)
        best[price] = np.min(through, axis=0)
        if np.isfinite(best[price, last]):
            chain, rest = [last], price
            while (node := int(came_from[rest, chain[-1]])) > 0:
                rest -= int(prices[chain[-1]])
                chain.append(node)
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
    costs: BucketCosts, table: BucketTable, max_programs: int
) -> list[tuple[int, ...]]:
    """Returns the best row edges for the table's block edges, by number of programs.

    An edge that occurs beside blocks takes a program for each block edge.
    """
    grids = [grid.by_row_edge(table.block_edges) for grid in costs.grids]
    alone, beside = np.sum(grids, axis=0)
    # Steps without prefill.
    hops = _up_hops(alone)
    hops[0] += alone[0]  # steps without decodes run at the first edge
    # Steps with prefill; all that demand less run at the first edge beside blocks.
    counts = np.arange(len(alone))
    is_beside = counts >= _with_all_rows(table).prefill_row_edges[0]
    sums = np.cumsum(beside, axis=0)
    below = np.where(is_beside[:, None], sums, 0.0)
    hops += np.where(is_beside, np.diagonal(sums) - below, 0.0)
    prices = np.where(is_beside, len(table.block_edges), 1)
    return shortest_chains(hops, prices, max_programs)


def best_block_edges(
    costs: BucketCosts, table: BucketTable, max_edges: int
) -> list[tuple[int, ...]]:
    """Returns the best 2, 3, ... `max_edges` block edges, 0 first, for row edges."""
    matrices = [(grid.is_limited, grid.by_block_edge(table)) for grid in costs.grids]
    hops = np.sum(
        [(_limited_hops if limited else _up_hops)(one) for limited, one in matrices],
        axis=0,
    )
    max_edges = min(max_edges, len(hops))
    chains = shortest_chains(hops, np.ones(len(hops), np.int64), max_edges - 1)
    return [(0, *chain) for chain in chains]


def improve(costs: BucketCosts, table: BucketTable) -> BucketTable:
    """Returns a table of no more programs that neither dimension can improve."""
    while True:
        found = dataclasses.replace(
            table,
            block_edges=best_block_edges(costs, table, len(table.block_edges))[-1],
        )
        rows = best_row_edges(costs, found, table.num_programs)[-1]
        found = dataclasses.replace(found, row_edges=rows)
        if costs.expected_s(found) >= costs.expected_s(table) * (1 - _LEAST_GAIN):
            return table
        table = found


def _with_all_rows(table: BucketTable) -> BucketTable:
    return dataclasses.replace(table, row_edges=tuple(range(1, table.max_rows + 1)))


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

    The search starts from the best block edges without padded rows, and with all rows
    padded, for every number of them, and the best rows beside these; and from the
    tables of the strategies that need no fit, so that the result is never worse than
    that of a strategy with as many programs.

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
    found = [improve(costs, start) for start in starts[:_NUM_STARTS]]
    return min(found, key=costs.expected_s)


def _separate_fits(
    costs: BucketCosts, limits: BucketTable, max_programs: int
) -> list[BucketTable]:
    """Returns tables to improve, two for each number of block edges.

    Their block edges are best without padded rows, or if all are padded to the most;
    and their row edges are the best beside these.
    """
    tables = []
    most = dataclasses.replace(limits, row_edges=(limits.max_rows,))
    for rows in (_with_all_rows(limits), most):
        for block_edges in best_block_edges(costs, rows, max_programs):
            table = dataclasses.replace(limits, block_edges=block_edges)
            if found := best_row_edges(costs, table, max_programs):
                tables.append(dataclasses.replace(table, row_edges=found[-1]))
    return tables
