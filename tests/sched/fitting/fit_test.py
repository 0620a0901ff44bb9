"""Fitting: brute force agrees, no rule is better, and edges heed limits of time."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jserve_sched.buckets.table import BucketTable
from jserve_sched.fitting.costs import BucketCosts
from jserve_sched.fitting.demand import StepDemand, demand_from_steps
from jserve_sched.fitting.fit import best_block_edges, best_row_edges, fit_buckets
from jserve_sched.simulation.cost_model import CLOSED_FORMS
from jserve_sched.steps import features
from tests.fakes import make_step

PAGE_SIZE = 128
ROWS, BLOCKS, BLOCK_TOKENS = 6, 7, 12  # edges of 1 and 2 rows are without prefill


def table_of(rows: tuple[int, ...], blocks: tuple[int, ...]) -> BucketTable:
    return BucketTable(rows, blocks, BLOCK_TOKENS)


MOST = table_of((ROWS,), (0, BLOCKS))


def a100_s(matrix: np.ndarray) -> np.ndarray:
    return CLOSED_FORMS["a100-llama3-8b"].step_s(matrix, 32)


def bumpy_s(matrix: np.ndarray) -> np.ndarray:
    """Neither linear nor smooth, and it dips: the fit has to level that out."""
    rows, blocks = matrix[:, features.NUM_ROWS], matrix[:, features.NUM_BLOCKS]
    pages = matrix[:, features.DECODE_PAGES] + matrix[:, features.BLOCK_PAGES]
    return 1.0 + rows * (1 + 0.1 * pages) + blocks**1.3 + (blocks % 3) * (rows % 2)


def demand_of(*steps: tuple[int, int, bool, float]) -> StepDemand:
    """Steps are (rows, blocks, is limited, weight)."""
    rows, blocks, is_limited, weight = map(np.array, zip(*steps, strict=True))
    pages = np.ones(len(rows), int)
    return StepDemand(
        rows=rows,
        blocks=blocks,
        is_limited=is_limited.astype(bool),
        decode_pages=pages,
        block_pages=pages,
        weight=weight.astype(float),
    )


def costs_of(demand: StepDemand, step_s=bumpy_s, table=MOST) -> BucketCosts:
    return BucketCosts(demand, step_s, table, page_size=PAGE_SIZE)


def plain_cost_s(demand: StepDemand, costs: BucketCosts, table: BucketTable) -> float:
    """The definition, step by step, with a group for each of decodes and prefill."""
    times_s = {grid.is_limited: grid.time_s for grid in costs.grids}
    total = 0.0
    columns = (demand.rows, demand.blocks, demand.is_limited, demand.weight)
    for rows, blocks, limited, weight in zip(*columns, strict=True):
        bucket = table.fit(rows, blocks)
        time_s = times_s[bool(limited)][-1 if blocks else 0, bucket.num_rows]
        edge = max(one for one in table.block_edges if one <= blocks)
        if not limited:
            total += weight * time_s[bucket.num_blocks]
        elif edge:
            total += weight * time_s[edge] * blocks / edge
        elif blocks:
            total += weight * (2 * time_s[table.block_edges[1]] - time_s[blocks])
        else:
            total += weight * time_s[0]
    return total / float(np.sum(demand.weight))


@st.composite
def demands(draw: st.DrawFn) -> StepDemand:
    """Steps of one group: each has decodes, most have prefill, all have few pages."""
    steps = []
    for _ in range(draw(st.integers(1, 12))):
        rows, blocks = draw(st.integers(1, ROWS - 1)), draw(st.integers(0, BLOCKS))
        steps.append((rows, blocks, draw(st.booleans()), draw(st.integers(1, 9))))
    return demand_of(*steps)


def all_rows() -> list[tuple[int, ...]]:
    """All row edges without one row less than the most, which fits overprice."""
    return [
        (*inner, ROWS)
        for num_edges in range(ROWS - 1)
        for inner in itertools.combinations(range(1, ROWS - 1), num_edges)
    ]


def all_blocks(num_edges: int) -> list[tuple[int, ...]]:
    return [
        (0, *inner, BLOCKS)
        for inner in itertools.combinations(range(1, BLOCKS), num_edges - 2)
    ]


@given(demands(), st.integers(2, 16), st.integers(2, 5), st.integers(0, 999))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_brute_force_agrees(
    demand: StepDemand, max_programs: int, num_blocks: int, pick: int
) -> None:
    costs = costs_of(demand)

    def cost_s(table: BucketTable) -> float:
        return plain_cost_s(demand, costs, table)

    rows = all_rows()[pick % len(all_rows())]
    choices = [table_of(rows, blocks) for blocks in all_blocks(num_blocks)]
    table = choices[pick % len(choices)]
    assert costs.expected_s(table) == pytest.approx(cost_s(table))
    blocks = best_block_edges(costs, table, num_blocks)[-1]
    assert cost_s(table_of(rows, blocks)) == pytest.approx(min(map(cost_s, choices)))
    choices = [table_of(one, table.block_edges) for one in all_rows()]
    choices = [one for one in choices if one.num_programs <= max_programs]
    found = [
        table_of(one, table.block_edges)
        for one in best_row_edges(costs, table, max_programs)
    ]
    assert all(one.num_programs <= max_programs for one in found)
    if choices:
        best_s = min(map(cost_s, choices))
        assert min(map(cost_s, found)) <= best_s * (1 + 1e-9)


def fit(demand: StepDemand, max_programs: int, step_s=bumpy_s) -> BucketTable:
    return fit_buckets(
        demand, step_s, MOST, page_size=PAGE_SIZE, max_programs=max_programs
    )


def test_small_tables_are_the_best_of_all() -> None:
    every_table = [
        table_of(rows, blocks)
        for rows in all_rows()
        for num_blocks in range(2, BLOCKS + 2)
        for blocks in all_blocks(num_blocks)
    ]
    rng = np.random.default_rng(3)
    for _ in range(4):
        steps = []
        for _ in range(15):
            rows, blocks = int(rng.integers(1, ROWS)), int(rng.integers(0, 8))
            steps.append((rows, blocks, False, 1.0))
        costs = costs_of(demand_of(*steps))
        cost_s = [(costs.expected_s(one), one.num_programs) for one in every_table]
        for max_programs in (2, 4, 7, 9, 13):
            found = fit(demand_of(*steps), max_programs)
            assert found.num_programs <= max_programs
            best_s = min(one for one, count in cost_s if count <= max_programs)
            # Turns may end where no single turn helps; from that many starts they
            # seldom do.
            assert costs.expected_s(found) <= best_s * (1 + 1e-9)


def test_edges_fall_just_below_a_budget() -> None:
    def step_s(matrix: np.ndarray) -> np.ndarray:
        return 0.010 + 0.001 * matrix[:, features.NUM_BLOCKS]

    demand = demand_from_steps(
        [make_step(8, 16, decode_pages=2, block_pages=2, leaves_work=True)],
        BucketTable((8,), (0, 16, 32, 64)),
        tbt_budgets=[(0.0405, 1.0)],  # 30 blocks fit, 31 do not
        step_s=step_s,
        page_size=PAGE_SIZE,
    )
    table = BucketTable((8,), (0, 64))
    costs = costs_of(demand, step_s, table)
    assert best_block_edges(costs, table, 3)[-1] == (0, 30, 64)


def test_a_cost_linear_in_the_work_is_exact_though_contexts_are_grouped() -> None:
    rng = np.random.default_rng(1)
    blocks = rng.integers(1, 64, 60)
    demand = dataclasses.replace(
        demand_of(*((8, one, False, 1.0) for one in blocks.tolist())),
        decode_pages=rng.integers(5, 16, 60),
        block_pages=rng.integers(65, 256, 60),
    )

    def step_s(matrix: np.ndarray) -> np.ndarray:
        shape_s = 0.01 + 0.002 * matrix[:, features.NUM_BLOCKS]
        return shape_s + 1e-5 * matrix[:, features.PREFILL_TOKENS]

    table = BucketTable((8,), (0, 10, 20, 64))
    edges = np.array(table.block_edges)[np.searchsorted(table.block_edges, blocks)]
    used_s = np.mean(0.01 + 0.002 * blocks + 1e-5 * 32 * blocks)
    expected_s = np.mean(0.01 + 0.002 * edges + 1e-5 * 32 * blocks)
    found = costs_of(demand, step_s, table).summary(table)
    assert found["expected_s"] == pytest.approx(expected_s)
    assert found["pad_share_time"] == pytest.approx(1 - used_s / expected_s)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_programs": 1}, "max_programs=1 is below 2"),
        ({"limits": BucketTable((4,), (0, 1))}, "5 rows"),
        ({"step_s": lambda matrix: matrix[:, 0] * np.nan}, "nan s for a step"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message) -> None:
    arguments = {"step_s": a100_s, "limits": MOST, "max_programs": 8, **change}
    with pytest.raises(ValueError, match=message):
        fit_buckets(demand_of((5, 1, False, 1)), page_size=PAGE_SIZE, **arguments)
