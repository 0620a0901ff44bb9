import collections
import dataclasses

import numpy as np
import pytest

from jserve_sched.buckets.table import BucketTable
from jserve_sched.steps.features import SCENARIOS, scenarios, step_features
from jserve_sched.steps.plan import StepPlan
from jserve_tools.training.step_grid import (
    ProfileLimits,
    profile_plans,
    step_plan,
    time_rounds,
)

LIMITS = ProfileLimits(
    table=BucketTable((2, 4, 8), (0, 1, 2, 4), 32),
    max_num_seqs=8,
    max_num_batched_tokens=8 + 4 * 32,
    max_model_len=2000,  # neither whole pages nor whole blocks
    page_size=128,
    num_pages=100,
)


def draw(num_random: int) -> list[StepPlan]:
    return profile_plans(LIMITS, np.random.default_rng(3), num_random=num_random)


def scenario_counts(plans: list[StepPlan]) -> dict[int, int]:
    return collections.Counter(scenarios(np.stack([one.features for one in plans])))


def test_the_grid_runs_every_program_at_short_and_long_contexts() -> None:
    by_bucket = collections.defaultdict(list)
    grid = draw(0)
    for plan in grid:
        by_bucket[plan.bucket].append(plan)
    assert set(by_bucket) == set(LIMITS.table.buckets)
    for bucket, group in by_bucket.items():
        longest = [max(row.stop for row in one.decodes) for one in group if one.decodes]
        assert min(longest) <= LIMITS.page_size
        assert max(longest) == LIMITS.max_model_len
        fills = {len(plan.decodes) for plan in group if plan.decodes}
        assert len(fills) >= 2, bucket  # full, and just over the edge below
        if bucket.num_blocks:
            stops = [row.stop for plan in group for row in plan.chunks]
            assert max(stops) > LIMITS.max_model_len - 64
            assert min(stops) <= LIMITS.page_size
    assert set(scenario_counts(grid)) == set(range(len(SCENARIOS)))


def test_random_batches_are_as_many_of_each_scenario_and_all_different() -> None:
    plans = draw(90)
    for plan in plans:
        rows = [*plan.decodes, *plan.chunks]
        assert len(rows) <= LIMITS.max_num_seqs
        assert plan.bucket.num_tokens <= LIMITS.max_num_batched_tokens
        assert all(row.num_tokens >= 1 for row in rows)
        assert max(row.stop for row in rows) <= LIMITS.max_model_len
        assert min((row.start for row in plan.decodes), default=1) >= 1
    drawn = plans[-90:]
    assert scenario_counts(drawn) == dict.fromkeys(range(3), 30)
    assert len({tuple(plan.features) for plan in plans}) == len(plans)
    assert any(row.num_tokens % 32 for plan in drawn for row in plan.chunks)
    assert len({len(plan.chunks) for plan in drawn}) > 2
    again = [plan.features.tolist() for plan in draw(90)]
    assert again == [plan.features.tolist() for plan in plans]


def test_too_many_random_batches_are_refused() -> None:
    tiny = dataclasses.replace(
        LIMITS, table=BucketTable((1,), (0, 1), 1), max_num_seqs=1, max_model_len=2
    )
    with pytest.raises(ValueError, match="num_random_shapes=50 is too many"):
        profile_plans(tiny, np.random.default_rng(0), num_random=50)


def test_a_plan_has_the_shape_and_rows_of_its_own() -> None:
    plan = step_plan(LIMITS, (5, 127, 128), ((64, 40), (0, 32)))
    assert [row.start for row in plan.decodes] == [5, 127, 128]
    assert [(row.start, row.num_tokens) for row in plan.chunks] == [(64, 40), (0, 32)]
    assert (plan.bucket.num_rows, plan.bucket.num_blocks) == (8, 4)
    assert plan.num_sampled == 5
    rows = [*plan.decodes, *plan.chunks]
    assert [row.request.slot for row in rows] == list(range(5))
    assert [row.request.pages for row in rows] == [[0], [1], [2, 3], [4], [5]]
    for row in plan.decodes:  # its own token is on the device
        assert row.request.num_known_tokens == row.start
    for row in plan.chunks:
        assert row.request.num_known_tokens == row.stop
    expected = step_features(plan.decodes, plan.chunks, plan.bucket, 128)
    np.testing.assert_array_equal(plan.features, expected)

    far = step_plan(LIMITS, (8000, 5000), ())  # a pool that is used up begins again
    pages = [page for row in far.decodes for page in row.request.pages]
    assert pages == [*range(100), 0, 1, 2]


@pytest.mark.parametrize(("max_s", "num_kept"), [(1e9, 3), (0.0, 1)])
def test_rounds_are_shuffled_and_end_with_their_time(
    max_s: float, num_kept: int
) -> None:
    visited: list[int] = []

    def time_step(index: int) -> float:
        visited.append(index)
        return 1.0 + index + 100.0 * (len(visited) <= 10)  # cold at first

    rng = np.random.default_rng(0)
    duration_s = time_rounds(
        time_step, 10, rounds=3, warmup_rounds=1, rng=rng, max_s=max_s
    )
    rounds = np.reshape(visited, (1 + num_kept, 10)).tolist()
    assert all(sorted(one) == list(range(10)) for one in rounds)
    assert len(set(map(tuple, rounds))) == 1 + num_kept
    # The cold round is gone, and each time stands under its own step.
    np.testing.assert_array_equal(duration_s, [np.arange(1.0, 11.0)] * num_kept)
