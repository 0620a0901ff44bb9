"""Step demand: what rounds up, what rounds down, and to where."""

from typing import Any

import numpy as np
import pytest

from jserve_sched.buckets.table import Bucket, BucketTable
from jserve_sched.fitting.demand import (
    StepDemand,
    TbtBudgets,
    bucket_features,
    demand_from_steps,
    merge,
    prior_demand,
    with_prior,
)
from jserve_sched.steps import features
from jserve_sched.steps.record import StepRecord
from tests.fakes import make_step

TABLE = BucketTable((4, 8), (0, 4, 8, 16))


def step(num_blocks: int = 4, **fields: Any) -> StepRecord:
    pages = {"decode_pages": 3, "block_pages": 2}
    return make_step(8, num_blocks, **(pages | {"used_rows": 6} | fields))


LEFT = step(leaves_work=True)
IDLE = step(0, block_pages=0, leaves_work=True)


def step_s(matrix: np.ndarray) -> np.ndarray:
    return 0.010 + 0.010 * matrix[:, features.NUM_BLOCKS]


def demand_of(*steps: StepRecord, budgets: TbtBudgets = ()) -> StepDemand:
    return demand_from_steps(
        steps, TABLE, tbt_budgets=budgets, step_s=step_s, page_size=128
    )


def blocks_of(demand: StepDemand) -> dict[tuple[int, bool], float]:
    keys = zip(demand.blocks.tolist(), demand.is_limited.tolist(), strict=True)
    return dict(zip(keys, demand.weight.tolist(), strict=True))


def limited(*blocks: int) -> dict[tuple[int, bool], float]:
    return {(one, True): 1 / len(blocks) for one in blocks}


def test_a_step_that_did_all_there_was_rounds_up() -> None:
    found = demand_of(step(used_blocks=3), step(used_blocks=3), step())
    assert blocks_of(found) == {(3, False): 2.0, (4, False): 1.0}
    assert found.rows.tolist() == [6, 6]


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        ([], limited(4, 5, 6, 7)),  # any count before the next edge
        ([(0.070, 1.0)], limited(6)),  # 0.010 + 6 x 0.010 just fits
        ([(0.0699, 1.0)], limited(5)),
        ([(0.050, 1.0)], limited(4)),
        ([(0.0899, 1.0)], limited(7)),
        ([(0.090, 1.0)], limited(4, 5, 6, 7)),  # the next edge fits: not its limit
        ([(0.049, 1.0)], limited(4, 5, 6, 7)),  # this edge does not: nor that
        (
            [(0.070, 0.3), (0.050, 0.1), (9.0, 0.6)],
            {(6, True): 0.75, (4, True): 0.25},
        ),
        ([(0.070, 0.0)], limited(4, 5, 6, 7)),
    ],
)
def test_a_limited_step_demands_what_a_budget_allows(budgets, expected) -> None:
    assert blocks_of(demand_of(LEFT, budgets=budgets)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "step",
    [
        step(num_blocks=16, used_blocks=16, leaves_work=True),  # no edge is larger
        step(num_blocks=8, used_blocks=5, leaves_work=True),  # a limit at no edge
    ],
)
def test_a_step_that_no_larger_edge_would_help_rounds_up(step: StepRecord) -> None:
    found = demand_of(step, budgets=[(0.07, 1.0)])
    assert blocks_of(found) == {(step.used_blocks, False): 1.0}


def test_a_demand_needs_a_step() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        demand_of()


def test_the_prior_favours_no_size_over_its_double() -> None:
    prior = prior_demand(8, 64)
    assert prior.num_steps == pytest.approx(1.0)
    has_prefill = prior.blocks > 0
    assert np.sum(prior.weight[has_prefill]) == pytest.approx(0.5)
    halves = [
        np.sum(prior.weight[(prior.blocks > low) & (prior.blocks <= 2 * low)])
        for low in (8, 16, 32)
    ]
    assert halves == pytest.approx([halves[0]] * 3, rel=0.1)
    assert not np.any((prior.rows == 0) & (prior.blocks == 0))
    assert (np.max(prior.rows), np.max(prior.rows[has_prefill])) == (8, 7)


def test_a_prior_leaves_no_cliff_above_what_was_seen() -> None:
    # At most 8 rows were ever seen; 12 would be padded to 256 without a prior.
    seen = merge([demand_of(step(used_rows=one, block_pages=0)) for one in range(1, 9)])
    mixed = with_prior(seen, BucketTable((256,), (0, 24)))
    assert mixed.num_steps == pytest.approx(8.0)
    above = mixed.weight[mixed.rows > 8].sum() / mixed.num_steps
    assert 0.025 < above < 0.1
    assert np.all(mixed.blocks > 0)  # steps without prefill were never seen
    assert with_prior(seen, TABLE, 0.0) is seen


def test_features_of_shapes_agree_with_those_of_uniform_steps() -> None:
    chunk, decode = bucket_features(
        np.array([4, 2]),
        np.array([8, 0]),
        used_rows=np.array([0, 1]),
        used_blocks=np.array([8, 0]),
        decode_pages=np.array([0, 3]),
        block_pages=np.array([16, 0]),
        page_size=128,
        block_tokens=32,
    )
    # One chunk of 256 tokens; all its blocks are priced as the last one.
    expected = np.zeros(features.NUM_FEATURES)
    expected[features.PREFILL_WORK] = expected[features.CHUNK_SQUARES] = 256.0**2
    expected[features.PREFILL_TOKENS] = expected[features.LARGEST_CHUNK] = 256
    expected[features.NUM_ROWS], expected[features.NUM_BLOCKS] = 4, 8
    expected[features.BLOCK_PAGES] = 16
    assert chunk.tolist() == expected.tolist()
    uniform = features.uniform_features(
        Bucket(1, 0), decode_pages=3, block_pages=0, page_size=128
    )
    uniform[features.NUM_ROWS] = 2
    assert decode.tolist() == uniform.tolist()
