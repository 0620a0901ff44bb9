"""Fitting: brute force agrees, nothing beats it, and edges heed limits of time."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jserve_sched import features
from jserve_sched.bucket_costs import BucketCosts, costs_of
from jserve_sched.bucket_fitting import (
    best_block_edges,
    best_row_edges,
    fit_block_edges,
    fit_buckets,
    shortest_chains,
    turns,
)
from jserve_sched.bucket_strategies import STRATEGIES
from jserve_sched.buckets import BucketTable
from jserve_sched.cost_model import CLOSED_FORMS
from jserve_sched.step_demand import StepDemand, demand_from_steps, merge, prior_demand

PAGE_SIZE = 128
A100 = CLOSED_FORMS["a100-llama3-8b"]
LIMITS = {"max_num_seqs": 64, "max_num_batched_tokens": 2112, "block_tokens": 32}
SMALL_ROWS, SMALL_BLOCKS = 6, 7


def a100_s(matrix: np.ndarray) -> np.ndarray:
    return A100.step_s(matrix, 32)


def bumpy_s(matrix: np.ndarray) -> np.ndarray:
    """Neither linear nor smooth, and it dips: the fit has to level that out."""
    rows, blocks = matrix[:, features.NUM_ROWS], matrix[:, features.NUM_BLOCKS]
    pages = matrix[:, features.DECODE_PAGES] + matrix[:, features.BLOCK_PAGES]
    return 1.0 + rows * (1 + 0.1 * pages) + blocks**1.3 + (blocks % 3) * (rows % 2)


def demand_of(
    *steps: tuple[int, int, int, bool, float], pages: tuple[int, int] = (1, 1)
) -> StepDemand:
    """Steps are (rows, first block, last block, is limited, weight)."""
    rows, blocks, last_block, is_limited, weight = map(
        np.array, zip(*steps, strict=True)
    )
    return StepDemand(
        rows=rows,
        blocks=blocks,
        last_block=last_block,
        is_limited=is_limited.astype(bool),
        decode_pages=np.full(len(rows), pages[0]),
        block_pages=np.full(len(rows), pages[1]),
        weight=weight.astype(float),
    )


def small_costs(demand: StepDemand) -> BucketCosts:
    return BucketCosts(
        demand,
        bumpy_s,
        max_rows=SMALL_ROWS,
        max_blocks=SMALL_BLOCKS,
        block_tokens=32,
        page_size=PAGE_SIZE,
    )


def plain_cost_s(demand: StepDemand, costs: BucketCosts, table: BucketTable) -> float:
    """The definition, step by step, with the times of a one-group demand."""
    total = 0.0
    for rows, first, last, limited, weight in zip(
        demand.rows,
        demand.blocks,
        demand.last_block,
        demand.is_limited,
        demand.weight,
        strict=True,
    ):
        bucket = table.fit(rows, first)
        if not limited:
            assert costs.up is not None
            total += weight * costs.up.time_s[0, bucket.num_rows, bucket.num_blocks]
            continue
        assert costs.limited is not None
        time_s = costs.limited.time_s[0, bucket.num_rows]
        for wish in range(first, last + 1):
            edge = table.largest_block_edge(wish)
            if edge:
                cost_s = time_s[edge] * wish / edge
            elif wish:
                above = table.block_edges[1]
                cost_s = 2 * time_s[above] - time_s[wish]
            else:
                cost_s = time_s[0]
            total += weight * cost_s / (last - first + 1)
    return total / float(np.sum(demand.weight))


@st.composite
def demands(draw: st.DrawFn) -> StepDemand:
    """Steps of one group: each has decodes and prefill, and few pages."""
    steps = []
    for _ in range(draw(st.integers(1, 12))):
        first = draw(st.integers(1, SMALL_BLOCKS))
        is_limited = draw(st.booleans())
        last = draw(st.integers(first, SMALL_BLOCKS)) if is_limited else first
        rows = draw(st.integers(1, SMALL_ROWS))
        steps.append((rows, first, last, is_limited, draw(st.integers(1, 9))))
    return demand_of(*steps)


def chains(least: int, most: int, num_edges: int) -> list[tuple[int, ...]]:
    return [
        (*inner, most)
        for inner in itertools.combinations(range(least, most), num_edges - 1)
    ]


@given(demands(), st.integers(1, 4), st.integers(2, 5))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_brute_force_agrees(demand: StepDemand, num_rows: int, num_blocks: int) -> None:
    costs = small_costs(demand)

    def cost_s(rows: tuple[int, ...], blocks: tuple[int, ...]) -> float:
        return plain_cost_s(demand, costs, BucketTable(rows, blocks))

    all_rows = chains(2, SMALL_ROWS, num_rows)
    all_blocks = [(0, *one) for one in chains(1, SMALL_BLOCKS, num_blocks - 1)]
    rows, blocks = all_rows[len(all_rows) // 2], all_blocks[len(all_blocks) // 2]
    assert costs.expected_s(BucketTable(rows, blocks)) == pytest.approx(
        cost_s(rows, blocks)
    )
    found_blocks = best_block_edges(costs, rows, num_blocks)[-1]
    assert len(found_blocks) == num_blocks
    assert cost_s(rows, found_blocks) == pytest.approx(
        min(cost_s(rows, one) for one in all_blocks)
    )
    found_rows = best_row_edges(costs, blocks, num_rows)[-1]
    assert len(found_rows) == num_rows
    assert cost_s(found_rows, blocks) == pytest.approx(
        min(cost_s(one, blocks) for one in all_rows)
    )


def fit_small(demand: StepDemand, max_programs: int) -> BucketTable:
    return fit_buckets(
        demand,
        bumpy_s,
        max_num_seqs=SMALL_ROWS,
        max_num_batched_tokens=SMALL_ROWS + 32 * SMALL_BLOCKS,
        block_tokens=32,
        page_size=PAGE_SIZE,
        max_programs=max_programs,
    )


EVERY_TABLE = [
    BucketTable(rows, (0, *blocks))
    for num_rows in range(1, SMALL_ROWS)
    for rows in chains(2, SMALL_ROWS, num_rows)
    for num_blocks in range(1, SMALL_BLOCKS + 1)
    for blocks in chains(1, SMALL_BLOCKS, num_blocks)
]


def test_small_tables_are_the_best_of_all() -> None:
    rng = np.random.default_rng(3)
    num_with_next = 0
    for _ in range(4):
        steps = []
        for _ in range(15):
            rows, blocks = int(rng.integers(1, 7)), int(rng.integers(0, 8))
            rows -= rows == SMALL_ROWS and blocks > 0  # such a step cannot occur
            steps.append((rows, blocks, blocks, False, 1.0))
        demand = demand_of(*steps)
        costs = small_costs(demand)
        cost_s = [(costs.expected_s(one), one.num_programs) for one in EVERY_TABLE]
        for max_programs in (2, 4, 7, 9, 13):
            found = fit_small(demand, max_programs)
            assert found.num_programs <= max_programs
            best_s = min(one for one, count in cost_s if count <= max_programs)
            # Turns may end where no single turn helps; from so many starts they
            # seldom do.
            assert costs.expected_s(found) == pytest.approx(best_s)
            num_with_next += SMALL_ROWS - 1 in found.row_edges
    assert num_with_next > 5  # a largest row edge that is one program


@given(demands(), st.integers(2, 30))
@settings(max_examples=40, derandomize=True, deadline=None)
def test_fitted_is_within_its_budget_and_no_rule_is_better(
    demand: StepDemand, max_programs: int
) -> None:
    can_occur = demand.rows < SMALL_ROWS
    if not np.any(can_occur):
        return
    demand = demand.where(can_occur)
    found = fit_small(demand, max_programs)
    assert found.num_programs <= max_programs
    costs = small_costs(demand)
    for strategy in STRATEGIES.values():
        rule = strategy().table(
            max_num_seqs=SMALL_ROWS,
            max_num_batched_tokens=SMALL_ROWS + 32 * SMALL_BLOCKS,
            block_tokens=32,
        )
        if rule.num_programs <= max_programs:
            assert costs.expected_s(found) <= costs.expected_s(rule)


def mixed_demand() -> StepDemand:
    rng = np.random.default_rng(0)
    size = 400
    up = np.minimum(rng.geometric(0.04, size), 64)
    first = rng.integers(1, 40, size)
    rows = rng.integers(0, 65, size)
    pages = rng.integers(1, 40, size)
    ups, limited = (
        StepDemand(
            rows=rows,
            blocks=blocks,
            last_block=last_block,
            is_limited=np.full(size, is_limited),
            decode_pages=np.where(rows > 0, pages, 0),
            block_pages=pages,
            weight=np.ones(size),
        )
        for blocks, last_block, is_limited in (
            (up, up, False),
            (first, first + 20, True),
        )
    )
    return merge([ups, limited, prior_demand(64, 64).scaled(20)])


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("step_s", [a100_s, bumpy_s])
def test_fitted_is_never_worse_than_a_rule_of_as_many_programs(name, step_s) -> None:
    rule = STRATEGIES[name]().table(**LIMITS)
    demand = mixed_demand()

    def cost_s(table: BucketTable) -> float:
        costs = costs_of(demand, step_s, table, page_size=PAGE_SIZE)
        return costs.expected_s(table)

    found = fit_buckets(
        demand,
        step_s,
        **LIMITS,
        page_size=PAGE_SIZE,
        max_programs=rule.num_programs,
    )
    assert found.num_programs <= rule.num_programs
    assert cost_s(found) <= cost_s(rule)


def test_a_start_that_is_best_is_returned() -> None:
    demand = demand_of((2, 3, 3, False, 1.0), (5, 1, 1, False, 1.0))
    best = BucketTable((2, 5, 6), (0, 1, 3, 7))
    assert (
        fit_buckets(
            demand,
            bumpy_s,
            max_num_seqs=6,
            max_num_batched_tokens=6 + 32 * 7,
            block_tokens=32,
            page_size=PAGE_SIZE,
            max_programs=best.num_programs,
            starts=[best, BucketTable((2, 4, 5, 6), (0, 1, 2, 3, 7))],
        )
        == best
    )


def test_turns_never_make_it_worse() -> None:
    demand = mixed_demand()
    costs = BucketCosts(
        demand, a100_s, max_rows=64, max_blocks=64, block_tokens=32, page_size=PAGE_SIZE
    )
    start = BucketTable((2, 4, 8, 64), (0, 1, 2, 3, 64))
    tables = [start, *turns(costs, start)]
    times_s = [costs.expected_s(table) for table in tables]
    assert len(tables) > 2
    assert times_s == sorted(times_s, reverse=True)
    assert {(len(one.row_edges), len(one.block_edges)) for one in tables} == {(4, 5)}
    assert not list(turns(costs, tables[-1]))


def test_edges_fall_just_below_a_budget() -> None:
    def step_s(matrix: np.ndarray) -> np.ndarray:
        return 0.010 + 0.001 * matrix[:, features.NUM_BLOCKS]

    budget_s = 0.0405  # 30 blocks fit, 31 do not

    class Step:
        num_rows = used_rows = 8
        num_blocks = used_blocks = 16
        decode_pages = block_pages = 2
        leaves_work = True

    table = BucketTable((8,), (0, 16, 32, 64))
    demand = demand_from_steps(
        [Step(), Step()],
        table,
        tbt_budgets=[(budget_s, 1.0)],
        step_s=step_s,
        page_size=PAGE_SIZE,
    )

    def cost_s(edge: int) -> float:
        with_edge = BucketTable((8,), (0, 1, edge, 64))
        costs = costs_of(demand, step_s, with_edge, page_size=PAGE_SIZE)
        return costs.expected_s(with_edge)

    found = fit_block_edges(
        demand,
        step_s,
        max_num_seqs=8,
        max_blocks=64,
        block_tokens=32,
        page_size=PAGE_SIZE,
        num_edges=3,
    )
    assert found == (0, 30, 64)
    assert cost_s(30) < cost_s(29) < cost_s(16)
    assert cost_s(30) < cost_s(31)  # 31 is of no use: such steps fall to 1 block
    assert cost_s(31) == pytest.approx(cost_s(2) * (2 / 0.012) / (1 / 0.011), rel=0.2)


def test_a_price_takes_programs_away() -> None:
    demand = mixed_demand()

    def fit(price_s: float) -> BucketTable:
        return fit_buckets(
            demand,
            a100_s,
            **LIMITS,
            page_size=PAGE_SIZE,
            max_programs=24,
            program_price_s=price_s,
        )

    nums = [fit(price_s).num_programs for price_s in (0.0, 1e-4, 1e-3, 1.0)]
    assert nums == sorted(nums, reverse=True)
    assert nums[0] > nums[2]
    assert nums[-1] == 2


def test_a_cost_linear_in_the_work_is_exact_though_contexts_are_grouped() -> None:
    rng = np.random.default_rng(1)
    size = 60
    blocks = rng.integers(1, 64, size)
    demand = StepDemand(
        rows=np.full(size, 8),
        blocks=blocks,
        last_block=blocks,
        is_limited=np.zeros(size, bool),
        decode_pages=rng.integers(5, 16, size),
        block_pages=rng.integers(65, 256, size),
        weight=np.ones(size),
    )

    def shape_s(matrix: np.ndarray) -> np.ndarray:
        shape = 0.01 + 0.002 * matrix[:, features.NUM_BLOCKS]
        return shape + 1e-5 * matrix[:, features.PREFILL_TOKENS]

    table = BucketTable((8,), (0, 10, 20, 64))
    edges = np.array(table.block_edges)[np.searchsorted(table.block_edges, blocks)]
    used_s = np.mean(0.01 + 0.002 * blocks + 1e-5 * 32 * blocks)
    expected_s = np.mean(0.01 + 0.002 * edges + 1e-5 * 32 * blocks)
    costs = costs_of(demand, shape_s, table, page_size=PAGE_SIZE)
    assert costs.expected_s(table) == pytest.approx(expected_s)
    assert costs.pad_share(table) == pytest.approx(1 - used_s / expected_s)


def test_shortest_chains_are_listed_by_hops() -> None:
    inf = np.inf
    hops = np.array(
        [
            [inf, inf, 1.0, 9.0],
            [inf, inf, 1.0, 1.0],
            [inf, inf, inf, 2.0],
            [inf, inf, inf, inf],
        ]
    )
    assert shortest_chains(hops, 8) == [(3,), (2, 3)]  # node 1 cannot be reached


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_programs": 1}, "max_programs=1 is below 2"),
        ({"program_price_s": -1.0}, "program_price_s=-1.0 is below 0"),
        ({"max_num_seqs": 32}, "64 rows"),
        ({"starts": [BucketTable((2, 32), (0, 64))]}, "largest edges"),
        ({"step_s": lambda matrix: matrix[:, 0] * np.nan}, "nan s for a step"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message) -> None:
    arguments = {"step_s": a100_s, **LIMITS, "max_programs": 8, **change}
    with pytest.raises(ValueError, match=message):
        fit_buckets(mixed_demand(), page_size=PAGE_SIZE, **arguments)
    with pytest.raises(ValueError, match="num_edges=1"):
        fit_block_edges(
            mixed_demand(),
            a100_s,
            max_num_seqs=64,
            max_blocks=64,
            block_tokens=32,
            page_size=PAGE_SIZE,
            num_edges=1,
        )
