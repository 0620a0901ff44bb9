"""Fits bucket edges to a demand: the least padded step time for so many programs.

The one idea: with the edges of one dimension given, the cost of a table is a sum over
intervals between neighbouring edges of the other. So the best edges of one dimension
are a shortest path from the smallest to the largest count with a given number of hops:
exact, by dynamic programming. The two dimensions take turns until neither finds
better; no turn ever makes it worse.

The DP is over `R + 1` row counts or `B + 1` block counts; `BucketCosts` has the costs.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from jserve_sched.bucket_costs import BucketCosts, CostGrid, costs_of
from jserve_sched.bucket_strategies import MIN_ROWS, STRATEGIES
from jserve_sched.buckets import BucketTable
from jserve_sched.step_demand import StepDemand, StepTimes

_LEAST_GAIN = 1e-12  # relative; less is rounding
_NUM_TURNED = 12  # candidates to go on from


def shortest_chains(costs: np.ndarray, max_hops: int) -> list[tuple[int, ...]]:
    """Returns the cheapest chains from the first node to the last, by number of hops.

    Args:
      costs: `[M, M]`, of a hop from i to j at `[i, j]`; infinite where there is none,
        as there must be for `i >= j`.
      max_hops: most hops.

    Returns:
      A chain without its first node for 1, 2, ... hops; fewer than `max_hops` if there
      are not so many nodes, and none where no chain of so many hops exists.
    """
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


def _sums_below(matrix: np.ndarray) -> np.ndarray:
    """Returns `[M + 1, M]`: sums of each column over the rows before the i-th."""
    sums = np.zeros((len(matrix) + 1, matrix.shape[1]))
    np.cumsum(matrix, axis=0, out=sums[1:])
    return sums


def _upward(costs: np.ndarray) -> np.ndarray:
    """Returns hop costs with those that do not ascend made infinite."""
    return np.where(np.triu(np.ones(costs.shape, bool), 1), costs, np.inf)


def _row_hops(matrix: np.ndarray, least: int) -> np.ndarray:
    """Returns `[R + 1, R + 1]`: the cost of rows i + 1 .. j at edge j.

    The first hop, from 0, takes those of no rows along.

    Args:
      matrix: `[R + 1, R + 1]` cost of the steps that want r rows, run with r'.
      least: the smallest row edge.
    """
    sums = _sums_below(matrix)
    to_edge = np.diagonal(sums[1:])
    costs = to_edge[None] - sums[1:]
    costs[0] = to_edge
    costs[:, 1:least] = np.inf
    return _upward(costs)


def _up_hops(grid: CostGrid, row_edges: tuple[int, ...]) -> np.ndarray:
    """Returns `[B + 1, B + 1]`: the cost of steps that want i + 1 .. j blocks, at j."""
    sums = _sums_below(_block_matrix(grid, row_edges))
    costs: np.ndarray = np.diagonal(sums[1:])[None] - sums[1:]
    return costs


def _limited_hops(grid: CostGrid, row_edges: tuple[int, ...]) -> np.ndarray:
    """Returns `[B + 1, B + 1]`: the cost of limited steps that want i .. j - 1, at i.

    Those at no edge but 0 break their limit at edge j. The largest count is an edge
    always, so what wants it costs the same however the edges lie and is left out.
    """
    matrix = _block_matrix(grid, row_edges)
    blocks = np.arange(len(matrix))
    sums = _sums_below(matrix * blocks[:, None] / np.maximum(blocks, 1))
    costs: np.ndarray = sums[:-1].T - np.diagonal(sums[:-1])[:, None]
    own = np.concatenate(([0.0], np.cumsum(np.diagonal(matrix)[1:])))
    over = np.diagonal(_sums_below(matrix)[:-1]) - matrix[0]
    costs[0, 1:] = 2.0 * over[1:] - own[:-1]
    return costs


def _block_matrix(grid: CostGrid, row_edges: tuple[int, ...]) -> np.ndarray:
    """Returns `[B + 1, B + 1]`: time of the steps that want b blocks, run with b'."""
    weight, time_s = grid.by_row_edge(row_edges)
    matrix: np.ndarray = np.tensordot(weight, time_s, axes=((0, 1), (0, 1)))
    return matrix


def best_row_edges(
    costs: BucketCosts,
    block_edges: tuple[int, ...],
    max_edges: int,
    *,
    has_next: bool = False,
) -> list[tuple[int, ...]]:
    """Returns the best row edges beside some block edges, for 1, 2, ... edges.

    Args:
      costs: of the tables.
      block_edges: beside them.
      max_edges: most row edges.
      has_next: whether one row less than the most is to be an edge as well, so that
        the largest edge comes without prefill and is a single program; from 2 edges
        on then.
    """
    hops = _row_hops(costs.row_matrix(block_edges), min(MIN_ROWS, costs.max_rows))
    if has_next:
        hops[:-2, -1] = np.inf
    return shortest_chains(hops, max_edges)


def best_block_edges(
    costs: BucketCosts, row_edges: tuple[int, ...], max_edges: int
) -> list[tuple[int, ...]]:
    """Returns the best block edges beside some row edges, for 2, 3, ... edges.

    The edge 0 is one of them.
    """
    hops = np.zeros((costs.max_blocks + 1, costs.max_blocks + 1))
    if costs.up is not None:
        hops += _up_hops(costs.up, row_edges)
    if costs.limited is not None:
        hops += _limited_hops(costs.limited, row_edges)
    return [(0, *chain) for chain in shortest_chains(_upward(hops), max_edges - 1)]


def turns(costs: BucketCosts, table: BucketTable) -> Iterator[BucketTable]:
    """Yields ever better tables with a table's numbers of edges; none if it is best.

    One dimension's edges are made the best beside the other's, then the other's, until
    neither finds better. A table whose largest row edge comes without prefill keeps
    that, or its programs would be more.
    """
    has_next = table.max_rows > MIN_ROWS and table.max_rows - 1 in table.row_edges
    best_s = costs.expected_s(table)
    num_idle = 0
    is_rows_turn = False
    while num_idle < 2:
        if is_rows_turn:
            rows = best_row_edges(
                costs, table.block_edges, len(table.row_edges), has_next=has_next
            )
            found = _with_edges(table, rows[-1], table.block_edges)
        else:
            blocks = best_block_edges(costs, table.row_edges, len(table.block_edges))
            found = _with_edges(table, table.row_edges, blocks[-1])
        is_rows_turn = not is_rows_turn
        found_s = costs.expected_s(found)
        if found_s < best_s * (1 - _LEAST_GAIN):
            table, best_s, num_idle = found, found_s, 0
            yield table
        else:
            num_idle += 1


def _with_edges(
    table: BucketTable, row_edges: tuple[int, ...], block_edges: tuple[int, ...]
) -> BucketTable:
    return BucketTable(row_edges, block_edges, table.block_tokens, table.max_tokens)


def _edge_counts(
    max_programs: int, max_rows: int, max_blocks: int, *, is_priced: bool
) -> Iterator[tuple[int, int, bool]]:
    """Yields numbers of row and block edges to try, and whether one is max_rows - 1.

    If it is, the largest row edge comes without prefill and is one program only.
    Without a price more edges are never worse, so only the largest pairs are tried.
    """
    least_rows = min(MIN_ROWS, max_rows)
    for has_next in (False, True):
        if has_next and max_rows - 1 < least_rows:
            return
        for num_full in range(1, max_rows - least_rows + 2 - has_next):
            most = min((max_programs - has_next) // num_full, max_blocks + 1)
            for num_blocks in range(2 if is_priced else max(most, 2), most + 1):
                yield num_full + has_next, num_blocks, has_next


def fit_buckets(
    demand: StepDemand,
    step_s: StepTimes,
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    block_tokens: int,
    page_size: int,
    max_programs: int,
    program_price_s: float = 0.0,
    starts: Sequence[BucketTable] = (),
) -> BucketTable:
    """Returns the table of least expected step time, price of its programs included.

    Candidates are, for every pair of numbers of edges within `max_programs`, the best
    edges of each dimension with the other unpadded; the tables of the strategies that
    need no fit; and `starts`. From the best of them the dimensions take turns, which
    end at a table that no change in one dimension improves. The best table met is
    returned: never worse than a candidate within `max_programs`.

    Args:
      demand: the steps to come.
      step_s: how long steps take.
      max_num_seqs: most requests in a step; the largest row edge.
      max_num_batched_tokens: most token positions in a step.
      block_tokens: tokens in one prefill block, Q.
      page_size: tokens in one KV page.
      max_programs: most programs of the table.
      program_price_s: what a program must save, seconds of the mean step time.
      starts: more candidates, of the same largest edges; those of more programs are
        left aside.

    Raises:
      ValueError: if `max_programs` is below 2 or the price below 0, or the demand or a
        start does not agree with the limits.
    """
    if max_programs < 2:
        raise ValueError(f"max_programs={max_programs} is below 2: with and without")
    if not program_price_s >= 0:
        raise ValueError(f"program_price_s={program_price_s} is below 0")
    rules = [
        strategy().table(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            block_tokens=block_tokens,
        )
        for strategy in STRATEGIES.values()
    ]
    costs = costs_of(demand, step_s, rules[0], page_size=page_size)

    def total_s(table: BucketTable) -> float:
        return costs.expected_s(table) + program_price_s * table.num_programs

    candidates = [
        table for table in (*starts, *rules) if table.num_programs <= max_programs
    ]
    is_priced = program_price_s > 0
    candidates += _separate_fits(costs, rules[0], max_programs, is_priced=is_priced)
    candidates.sort(key=total_s)
    found = candidates[:1]
    for start in candidates[:_NUM_TURNED]:
        found += turns(costs, start)
    return min(found, key=total_s)


def _separate_fits(
    costs: BucketCosts, limits: BucketTable, max_programs: int, *, is_priced: bool
) -> list[BucketTable]:
    """Returns tables whose dimensions are each the best with the other unpadded.

    Args:
      costs: of the tables.
      limits: any table of the right size.
      max_programs: most programs.
      is_priced: whether tables of fewer programs are wanted too.
    """
    all_rows = tuple(range(min(MIN_ROWS, costs.max_rows), costs.max_rows + 1))
    all_blocks = tuple(range(costs.max_blocks + 1))
    counts = list(
        _edge_counts(
            max_programs, costs.max_rows, costs.max_blocks, is_priced=is_priced
        )
    )
    blocks = best_block_edges(costs, all_rows, max(count for _, count, _ in counts))
    rows = {
        (len(edges), has_next): edges
        for has_next in (False, True)
        for edges in best_row_edges(
            costs,
            all_blocks,
            max(count for count, _, _ in counts),
            has_next=has_next,
        )
    }
    return [
        _with_edges(limits, rows[num_rows, has_next], blocks[num_blocks - 2])
        for num_rows, num_blocks, has_next in counts
    ]


def fit_block_edges(
    demand: StepDemand,
    step_s: StepTimes,
    *,
    max_num_seqs: int,
    max_blocks: int,
    block_tokens: int,
    page_size: int,
    num_edges: int,
) -> tuple[int, ...]:
    """Returns the best block edges where rows are not padded.

    Args:
      demand: the steps to come.
      step_s: how long steps take.
      max_num_seqs: most requests in a step.
      max_blocks: most prefill blocks in a step; the largest edge.
      block_tokens: tokens in one prefill block, Q.
      page_size: tokens in one KV page.
      num_edges: edges wanted, 0 among them; fewer if there are not so many counts.

    Raises:
      ValueError: if `num_edges` is below 2, or a step is beyond the limits.
    """
    if num_edges < 2:
        raise ValueError(f"num_edges={num_edges} is below 2: 0 and the most")
    costs = BucketCosts(
        demand,
        step_s,
        max_rows=max_num_seqs,
        max_blocks=max_blocks,
        block_tokens=block_tokens,
        page_size=page_size,
    )
    all_rows = tuple(range(1, max_num_seqs + 1))
    return best_block_edges(costs, all_rows, num_edges)[-1]
