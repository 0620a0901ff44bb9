import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jserve_sched.buckets.growth import plan_growth
from jserve_sched.buckets.table import BucketTable

TABLE = BucketTable((2, 4, 8), (0, 1, 2, 4), block_tokens=4)


def padded_cost(counts: Sequence[tuple[int, int]]) -> Callable[[BucketTable], float]:
    """Mean tokens of the bucket of each (rows, blocks), in steps of what fits."""

    def cost_s(table: BucketTable) -> float:
        total = 0.0
        for num_rows, num_blocks in counts:
            most = table.block_edge_beside(num_rows, 10**6)
            while num_blocks > most:
                total += table.fit(num_rows, most).num_tokens
                num_blocks -= most
            total += table.fit(num_rows, num_blocks).num_tokens
        return total / len(counts)

    return cost_s


def edges_of(table: BucketTable) -> set[tuple[str, int]]:
    return {("row", edge) for edge in table.row_edges} | {
        ("block", edge) for edge in table.block_edges
    }


edges = st.sets(st.integers(1, 12), min_size=1, max_size=4).map(sorted)


@st.composite
def tables(draw: st.DrawFn) -> BucketTable:
    rows, blocks = draw(edges), draw(edges)
    least = max(rows[-1] + 4 * blocks[0], rows[0] + 4 * blocks[-1])
    spare_tokens = draw(st.integers(0, 40))
    return BucketTable(tuple(rows), (0, *blocks), 4, least + spare_tokens)


demands = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 12)), min_size=1, max_size=6
)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(tables(), st.booleans(), demands)
def test_tables_grow_by_one_edge_from_a_covering_set(
    table: BucketTable, adds_one_below: bool, demand: list[tuple[int, int]]
) -> None:
    if adds_one_below:
        below = {*table.row_edges, table.max_rows - 1}
        table = dataclasses.replace(table, row_edges=tuple(sorted(below)))
    demand = [(min(rows, table.max_rows), blocks) for rows, blocks in demand]
    plan = plan_growth(table, padded_cost(demand))
    grown = plan.tables
    assert (plan.covering, plan.final) == (grown[0], table)
    beside = table.block_edge_beside(table.max_rows, 10**6)
    assert grown[0].block_edges == tuple(sorted({0, beside, table.max_blocks}))
    is_below = table.max_rows - 1 in table.row_edges
    most_rows = {1, 2, 3} if beside < table.max_blocks else {1 + is_below}
    assert len(grown[0].row_edges) in most_rows
    if is_below:
        assert table.max_rows - 1 in grown[0].row_edges
    assert all(one.max_rows == table.max_rows for one in grown)
    for smaller, larger in itertools.pairwise(grown):
        assert edges_of(smaller) < edges_of(larger)
        assert len(edges_of(larger) - edges_of(smaller)) == 1
        # Not only edges nest, but programs.
        assert set(smaller.buckets) < set(larger.buckets)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(tables(), demands)
def test_the_edge_left_out_is_the_one_that_costs_least_per_program(
    table: BucketTable, demand: list[tuple[int, int]]
) -> None:
    cost_s = padded_cost([(min(rows, table.max_rows), n) for rows, n in demand])
    covering, *others = plan_growth(table, cost_s).tables
    prices_s = {}
    for name, edge in edges_of(table) - edges_of(covering):
        field = f"{name}_edges"
        left: Any = tuple(one for one in getattr(table, field) if one != edge)
        try:
            smaller = dataclasses.replace(table, **{field: left})
        except ValueError:  # the largest block edge would fit beside no rows
            continue
        saved = table.num_programs - smaller.num_programs
        prices_s[smaller] = (cost_s(smaller) - cost_s(table)) / saved
    if others:
        assert prices_s[[covering, *others][-2]] == min(prices_s.values())


def test_the_limit_of_programs_takes_the_largest_that_is_within() -> None:
    cost_s = padded_cost([(1, 1), (3, 0), (8, 4)])
    plan = plan_growth(TABLE, cost_s)
    assert plan.within(12) == plan
    for limit in range(2, 12):
        within = plan.within(limit)
        assert within.tables == plan.tables[: len(within.tables)]
        assert within.final.num_programs <= limit
        assert plan.tables[len(within.tables)].num_programs > limit
    with pytest.raises(ValueError, match=r"=1 is below 2: .* largest edges"):
        plan.within(1)
