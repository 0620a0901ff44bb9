import collections

import numpy as np
import pytest

from jserve_sched.buckets import BucketTable
from jserve_sched.features import SCENARIOS, step_features
from jserve_tools.step_grid import (
    StepLimits,
    StepShape,
    designed_shapes,
    distinct,
    random_shapes,
    split_blocks,
    step_plan,
)

LIMITS = StepLimits(
    table=BucketTable((2, 4, 8), (0, 1, 2, 4), 32),
    num_slots=8,
    max_num_batched_tokens=8 + 4 * 32,
    max_model_len=2000,  # neither whole pages nor whole blocks
    page_size=128,
)


def fits(shape: StepShape, limits: StepLimits) -> bool:
    contexts = [start + 1 for start in shape.decodes]
    contexts += [start + count for start, count in shape.chunks]
    return (
        len(contexts) <= limits.num_slots
        and max(contexts) <= limits.max_model_len
        and min(shape.decodes, default=1) >= 1
        and all(start >= 0 and count >= 1 for start, count in shape.chunks)
        and shape.bucket(limits.table).num_tokens <= limits.max_num_batched_tokens
    )


def test_the_grid_runs_every_program_at_short_and_long_contexts() -> None:
    shapes = designed_shapes(LIMITS)
    by_bucket = collections.defaultdict(list)
    for shape in shapes:
        assert fits(shape, LIMITS)
        by_bucket[shape.bucket(LIMITS.table)].append(shape)
    assert set(by_bucket) == set(LIMITS.table.buckets)
    for bucket, group in by_bucket.items():
        decodes = [max(shape.decodes) for shape in group if shape.decodes]
        assert min(decodes) < LIMITS.page_size
        assert max(decodes) == LIMITS.max_model_len - 1
        fills = {len(shape.decodes) for shape in group if shape.decodes}
        assert len(fills) == 2, bucket  # full, and just over the edge below
        if bucket.num_blocks:
            stops = [sum(chunk) for shape in group for chunk in shape.chunks]
            assert max(stops) == LIMITS.max_model_len // 32 * 32
            assert min(stops) <= LIMITS.page_size
    assert {shape.scenario for shape in shapes} == set(SCENARIOS)


def test_random_batches_are_as_many_of_each_scenario_and_all_different() -> None:
    grid = designed_shapes(LIMITS)
    shapes = random_shapes(LIMITS, np.random.default_rng(3), num_shapes=90, but=grid)
    assert all(fits(shape, LIMITS) for shape in shapes)
    count = collections.Counter(shape.scenario for shape in shapes)
    assert count == dict.fromkeys(SCENARIOS, 30)
    assert distinct(grid + shapes, LIMITS) == grid + shapes
    assert any(count % 32 for shape in shapes for _, count in shape.chunks)
    assert len({len(shape.chunks) for shape in shapes}) > 2
    again = random_shapes(LIMITS, np.random.default_rng(3), num_shapes=90, but=grid)
    assert again == shapes
    assert random_shapes(LIMITS, np.random.default_rng(4), num_shapes=90) != shapes


def test_too_many_random_batches_are_refused() -> None:
    tiny = StepLimits(
        table=BucketTable((1,), (0, 1), 1),
        num_slots=1,
        max_num_batched_tokens=2,
        max_model_len=2,
        page_size=1,
    )
    with pytest.raises(ValueError, match="num_random_shapes=50 are too many"):
        random_shapes(tiny, np.random.default_rng(0), num_shapes=50)


def test_shapes_with_equal_features_are_one() -> None:
    # The same contexts in another order cost the same.
    shapes = [StepShape((5, 300), ()), StepShape((300, 5), ()), StepShape((5,), ())]
    assert distinct(shapes, LIMITS) == [shapes[0], shapes[2]]


def test_a_plan_has_the_shape_and_rows_of_their_own() -> None:
    shape = StepShape((5, 127, 128), ((64, 40), (0, 32)))
    plan = step_plan(shape, LIMITS, num_pages=100)
    assert [row.start for row in plan.decodes] == [5, 127, 128]
    assert [(row.start, row.num_tokens) for row in plan.chunks] == [(64, 40), (0, 32)]
    assert (plan.bucket.num_rows, plan.bucket.num_blocks) == (4, 4)
    assert plan.num_sampled == 5
    rows = [*plan.decodes, *plan.chunks]
    assert [row.request.slot for row in rows] == list(range(5))
    assert [row.request.pages for row in rows] == [[0], [1], [2, 3], [4], [5]]
    for row in plan.decodes:  # its own token is on the device
        assert row.request.num_known == row.start
    for row in plan.chunks:
        assert row.request.num_known == row.stop
    expected = step_features(plan.decodes, plan.chunks, plan.bucket, 128)
    np.testing.assert_array_equal(plan.features, expected)


def test_a_pool_that_is_used_up_begins_again() -> None:
    plan = step_plan(StepShape((255, 255), ()), LIMITS, num_pages=3)
    assert [row.request.pages for row in plan.decodes] == [[0, 1], [2, 0]]


def test_blocks_are_split_evenly() -> None:
    assert split_blocks(7, 3) == [3, 2, 2]
    assert split_blocks(4, 4) == [1, 1, 1, 1]
