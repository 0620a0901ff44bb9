"""Bucket growth: the order in which edges are added, and which are left out.

A server starts with two programs and adds finer ones while it serves, and a table may
have more programs than a limit allows. Both need the edges in order of value. It is
found backwards: from the full table, the edge whose removal costs least for each
program saved is removed, again and again. The reverse is the order of growth.
"""

import dataclasses
from collections.abc import Callable, Iterator

from jserve_sched.buckets.table import BucketTable

TableCost = Callable[[BucketTable], float]
"""Returns the expected seconds of a step under a table."""


@dataclasses.dataclass(frozen=True)
class BucketPlan:
    """The buckets that a server compiles, in their order.

    Attributes:
      tables: Nested tables in the order of growth, each with one edge more than the
        one before it.
    """

    tables: tuple[BucketTable, ...]

    @property
    def covering(self) -> BucketTable:
        """The first table: its few large buckets hold every step."""
        return self.tables[0]

    @property
    def final(self) -> BucketTable:
        """The last table, with all edges."""
        return self.tables[-1]

    def within(self, max_programs: int) -> "BucketPlan":
        """Returns the plan that ends at the last table of at most `max_programs`.

        Raises:
          ValueError: If not even the covering table is within the limit.
        """
        if self.covering.num_programs > max_programs:
            raise ValueError(
                f"max_programs={max_programs} is below {self.covering.num_programs}: "
                f"without the table's largest edges (rows {self.covering.row_edges}, "
                f"blocks {self.covering.block_edges}) some steps have no bucket"
            )
        return BucketPlan(
            tuple(one for one in self.tables if one.num_programs <= max_programs)
        )


def plan_growth(table: BucketTable, cost_s: TableCost) -> BucketPlan:
    """Returns the plan that grows, edge by edge, from a covering table to `table`.

    The covering table is the largest row edge without prefill and with as many blocks
    as fit beside it: two programs in which every step can run, if slowly. If more
    blocks fit beside fewer rows, it has that block edge and such a row edge too. If one
    row less than the most is an edge, every table has that edge, since the largest row
    edge then occurs without prefill only. So each table's buckets, not only its edges,
    are among the next one's.

    `cost_s` is called about `E**2 / 2` times for E edges: for every table with one edge
    less.
    """
    tables, now_s = [table], cost_s(table)
    while smaller := list(_with_one_edge_less(tables[-1])):
        num_programs = tables[-1].num_programs
        costs_s = [cost_s(one) for one in smaller]
        prices_s = [
            (then_s - now_s) / (num_programs - one.num_programs)
            for one, then_s in zip(smaller, costs_s, strict=True)
        ]
        best = prices_s.index(min(prices_s))  # the first of equals: the smallest edge
        tables.append(smaller[best])
        now_s = costs_s[best]
    return BucketPlan(tuple(reversed(tables)))


def _with_one_edge_less(table: BucketTable) -> Iterator[BucketTable]:
    """Yields the tables with one edge less that still hold the covering one.

    They are in ascending order of the removed edge, a row edge before a block edge.
    """
    most_blocks_tokens = table.max_blocks * table.block_tokens
    max_tokens = table.max_tokens or table.max_rows + most_blocks_tokens
    beside = table.block_edge_beside(table.max_rows, max_tokens)
    rows = set(table.row_edges) - {table.max_rows - 1, table.max_rows}
    blocks = set(table.block_edges) - {0, beside, table.max_blocks}
    for edge in sorted(rows | blocks):
        if edge in rows:
            left = tuple(one for one in table.row_edges if one != edge)
            # The most blocks may fit beside the smallest row edge only.
            if left[0] + most_blocks_tokens <= max_tokens:
                yield dataclasses.replace(table, row_edges=left)
        if edge in blocks:
            left = tuple(one for one in table.block_edges if one != edge)
            yield dataclasses.replace(table, block_edges=left)
