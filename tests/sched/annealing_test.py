import dataclasses
import itertools
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annealing_instances import Instance, draw
from jserve_sched.annealing import (
    WINDOW_JOBS,
    arrival_start,
    check_plan,
    evaluate,
    packed,
    search,
    sorted_start,
)
from jserve_sched.annealing_exhaustive import best_plan
from jserve_sched.annealing_kernel import FOREVER_NS, NEVER_NS
from jserve_sched.annealing_problem import AnnealingProblem, BatchPlan, Score

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "annealing.json"


def golden() -> list[tuple[Instance, Score]]:
    return [
        (Instance(**fields), Score(num_met, total_ns))
        for fields, num_met, total_ns in json.loads(GOLDEN.read_text())
    ]


def by_hand(**fields: object) -> AnnealingProblem:
    """Two short jobs and a long one; only the long one is in a hurry."""
    return dataclasses.replace(
        AnnealingProblem(
            exec_ns=np.array([[10, 12], [20, 24], [100, 120]]),
            latest_ns=np.array([[FOREVER_NS] * 2, [FOREVER_NS] * 2, [25, NEVER_NS]]),
            waited_ns=np.array([1, 2, 0]),
            kv_tokens=np.array([5, 5, 50]),
            max_kv_tokens=30,
            start_ns=7,
        ),
        **fields,
    )


def test_a_plan_is_worth_what_it_is_by_hand() -> None:
    # [0, 1] together from 7 to 31: the third job may wait no longer than 25.
    score = evaluate(by_hand(), BatchPlan((0, 1, 2), (2, 1)))
    assert score == Score(2, (7 + 12 + 1) + (7 + 24 + 2) + (31 + 100))
    assert score.goal == pytest.approx(2 / 184e-9)
    # One after another: 0 from 7, 2 from 17, 1 from 117.
    score = evaluate(by_hand(), BatchPlan((0, 2, 1), (1, 1, 1)))
    assert score == Score(3, (7 + 10 + 1) + (17 + 100) + (117 + 20 + 2))


def test_starts_fill_batches_up_to_the_kv_budget() -> None:
    problem = by_hand()
    assert sorted_start(problem) == BatchPlan((0, 1, 2), (2, 1))
    assert arrival_start(problem) == BatchPlan((1, 0, 2), (2, 1))
    assert packed(problem, (0, 2, 1)) == BatchPlan((0, 2, 1), (1, 1, 1))
    tight = by_hand(max_kv_tokens=9)
    assert sorted_start(tight) == BatchPlan((0, 1, 2), (1, 1, 1))


@pytest.mark.parametrize(
    ("order", "sizes", "says"),
    [
        ((0, 1, 1), (1, 1, 1), "does not hold jobs 0..2 once"),
        ((0, 1, 2), (2, 2), "hold 4 jobs, not 3"),
        ((0, 1, 2), (3,), "a batch of 3 is not in 1..2"),
        ((0, 1, 2), (0, 2, 1), "a batch of 0 is not in 1..2"),
        ((0, 1, 2), (1, 2), "a batch of 55 KV tokens is over 30"),
    ],
)
def test_a_wrong_plan_is_refused(
    order: tuple[int, ...], sizes: tuple[int, ...], says: str
) -> None:
    plan = BatchPlan(order, sizes)
    with pytest.raises(ValueError, match=says):
        check_plan(by_hand(), plan)
    with pytest.raises(ValueError, match=says):
        search(by_hand(), starts=(plan,))


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="num_proposals=-1 is below 0"):
        search(by_hand(), num_proposals=-1)
    with pytest.raises(ValueError, match="not both above 0"):
        search(by_hand(), temperatures=(0.1, 0.0))


def test_finds_the_plan_by_hand() -> None:
    found = search(by_hand(), num_proposals=100)
    assert found.plan == BatchPlan((0, 2, 1), (1, 1, 1))
    assert found.score == Score(3, 274)
    assert found.sorted_score == Score(2, 184)


def test_a_search_is_left_out_only_where_nothing_can_be_gained() -> None:
    easy = by_hand(
        exec_ns=np.array([[10, 10], [100, 100], [100, 100]]),
        latest_ns=np.full((3, 2), FOREVER_NS),
        max_kv_tokens=100,
    )
    found = search(easy, num_proposals=50)
    assert found.sorted_score.num_met == 3
    assert (found.plan.sizes, found.is_early_exit) == ((1, 2), False)
    assert found.score == best_plan(easy)[1]
    single = dataclasses.replace(
        easy, exec_ns=easy.exec_ns[:, :1], latest_ns=easy.latest_ns[:, :1]
    )
    found = search(single)
    assert (found.num_proposals, found.is_early_exit) == (0, True)
    assert found.score == best_plan(single)[1]
    hurried = dataclasses.replace(single, latest_ns=np.array([[99], [99], [0]]) + 7)
    assert not search(hurried).is_early_exit


def test_a_better_given_start_is_never_lost() -> None:
    """Batches are slow here, so the sorted start is full of them and keeps all."""
    alone_ns = np.arange(10, 70, 10)[:, None]
    problem = AnnealingProblem(
        exec_ns=alone_ns * np.array([[1, 4, 4, 5]]),
        latest_ns=np.full((6, 4), FOREVER_NS),
        waited_ns=np.zeros(6, np.int64),
        kv_tokens=np.ones(6, np.int64),
        max_kv_tokens=100,
    )
    better = BatchPlan(tuple(range(6)), (1,) * 6)
    found = search(problem, num_proposals=0, starts=(better,))
    assert found.sorted_score.num_met == 6
    assert (found.plan, found.start_score) == (better, evaluate(problem, better))


def test_where_nobody_can_be_met_the_shortest_plan_wins() -> None:
    problem = by_hand(latest_ns=np.full((3, 2), NEVER_NS))
    found = search(problem, num_proposals=100)
    assert found.score.num_met == 0
    assert found.score == best_plan(problem)[1]


@pytest.mark.parametrize("num_jobs", [1, 2])
def test_few_jobs_and_no_proposals(num_jobs: int) -> None:
    problem = draw(np.random.default_rng(0), num_jobs, 2, ttft_s=0.01).problem()
    for num_proposals in (0, 1, 3):
        found = search(problem, num_proposals=num_proposals)
        check_plan(problem, found.plan)


def test_small_optima_are_those_on_file() -> None:
    small = [pair for pair in golden() if len(pair[0].rows) <= 5]
    assert len(small) > 80
    for instance, optimum in small:
        assert best_plan(instance.problem())[1] == optimum


def test_within_one_percent_of_the_optimum() -> None:
    """Plain Python on every fifth; the compiled kernel takes all 200."""
    for instance, optimum in golden()[::5]:
        found = search(instance.problem())
        assert found.score.goal >= 0.99 * optimum.goal


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    num_jobs=st.integers(1, 30),
    max_batch=st.integers(1, 6),
    max_kv_tokens=st.sampled_from([0, 700, 10**9]),
    num_proposals=st.sampled_from([0, 1, 7, 200]),
    scale=st.sampled_from(["relative", "raw"]),
    seed=st.integers(0, 2**32),
)
def test_a_valid_plan_never_below_its_starts(
    num_jobs: int,
    max_batch: int,
    max_kv_tokens: int,
    num_proposals: int,
    scale: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    instance = draw(
        rng, num_jobs, max_batch, max_kv_tokens=max_kv_tokens, max_waited_ms=9000
    )
    problem = instance.problem()
    start = packed(problem, rng.permutation(num_jobs).tolist())
    found = search(
        problem, num_proposals=num_proposals, seed=seed, scale=scale, starts=(start,)
    )
    check_plan(problem, found.plan)
    assert found.score == evaluate(problem, found.plan)
    assert found.sorted_score == evaluate(problem, sorted_start(problem))
    for one in (start, sorted_start(problem), arrival_start(problem)):
        assert found.start_score.merit >= evaluate(problem, one).merit
    assert found.score.merit >= found.start_score.merit


def test_the_same_seed_gives_the_same_plan_with_and_without_slices() -> None:
    problem = draw(np.random.default_rng(5), 20, 1).problem()
    whole = search(problem, num_proposals=1_000, seed=3)
    assert search(problem, num_proposals=1_000, seed=3) == whole
    sliced = search(problem, num_proposals=1_000, seed=3, deadline=lambda: False)
    assert sliced == whole
    plans = {search(problem, num_proposals=40, seed=seed).plan for seed in range(5)}
    assert len(plans) > 1


def test_a_deadline_ends_the_search_with_the_best_so_far() -> None:
    problem = draw(np.random.default_rng(5), 20, 1).problem()
    looks = itertools.count()
    found = search(
        problem,
        num_proposals=10_000,
        temperatures=(0.01, 0.001),
        deadline=lambda: next(looks) == 3,
    )
    assert 0 < found.num_proposals < 1_000
    assert found.score.merit > found.start_score.merit
    at_once = search(problem, deadline=lambda: True)
    assert (at_once.num_proposals, at_once.score) == (0, at_once.start_score)


def test_a_warm_start_is_not_lost() -> None:
    problem = draw(np.random.default_rng(5), 20, 1).problem()
    good = search(problem, num_proposals=6_300)
    again = search(problem, num_proposals=0, starts=(good.plan,))
    assert (again.plan, again.start_score) == (good.plan, good.score)


@pytest.mark.parametrize("max_batch", [1, 3])
def test_jobs_beyond_the_window_keep_their_order(max_batch: int) -> None:
    num_jobs = 3 * WINDOW_JOBS
    problem = draw(np.random.default_rng(6), num_jobs, max_batch).problem()
    found = search(problem, num_proposals=1_000, temperatures=(0.05, 0.001))
    check_plan(problem, found.plan)
    start = sorted_start(problem)
    assert found.score.merit > found.start_score.merit == evaluate(problem, start).merit
    num_searched = WINDOW_JOBS - WINDOW_JOBS % max_batch
    assert found.plan.order[num_searched:] == start.order[num_searched:]
    assert found.plan.order != start.order


@pytest.mark.parametrize("max_batch", [1, 2, 4])
def test_beats_the_sorted_start_at_20_jobs(max_batch: int) -> None:
    rng = np.random.default_rng(20)
    gains = []
    for _ in range(8):
        problem = draw(rng, 20, max_batch).problem()
        found = search(problem, num_proposals=2_000)
        gains.append(found.score.goal / found.sorted_score.goal - 1)
    assert np.mean(gains) >= 0.04


def test_relative_change_beats_raw_change() -> None:
    problem = draw(np.random.default_rng(20), 20, 2).problem()
    raw, relative = (
        search(problem, num_proposals=2_000, scale=scale).score.merit
        for scale in ("raw", "relative")
    )
    assert relative > raw
