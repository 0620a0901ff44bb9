"""The search for a plan: what plans are worth, which are found, and how far it goes."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jserve_sched.policies.annealing.problem import (
    AnnealingProblem,
    Score,
    evaluate,
    make_problem,
    packed,
)
from jserve_sched.policies.annealing.search import search
from jserve_sched.requests.request import Request
from jserve_sched.requests.slo import Slo
from jserve_sched.timing.request_latency import Bilinear, RequestLatency
from tests.annealing_instances import NO_LIMIT, draw

EVER, NEVER = math.inf, -math.inf


def by_hand(**fields: Any) -> AnnealingProblem:
    """Two short jobs and a long one; only the long one is in a hurry."""
    return dataclasses.replace(
        AnnealingProblem(
            exec_s=np.array([[10.0, 12], [20, 24], [100, 120]]),
            latest_s=np.array([[EVER, EVER], [EVER, EVER], [25, NEVER]]),
            waited_s=np.array([1.0, 2, 0]),
            kv_tokens=np.array([5, 5, 50]),
            max_kv_tokens=30,
            start_s=7.0,
        ),
        **fields,
    )


def sorted_start(problem: AnnealingProblem) -> np.ndarray:
    return packed(problem, np.argsort(problem.exec_s[:, -1], kind="stable").tolist())


def check_plan(problem: AnnealingProblem, batch_of: np.ndarray) -> None:
    sizes = np.bincount(batch_of, minlength=1)
    tokens = np.bincount(batch_of, weights=problem.kv_tokens)
    assert len(batch_of) == len(problem.exec_s)
    assert np.min(sizes) >= 1 and np.max(sizes) <= problem.exec_s.shape[1]
    assert np.all((sizes == 1) | (tokens <= problem.max_kv_tokens))


def test_a_plan_is_worth_what_it_is_by_hand() -> None:
    # [0, 1] together from 7 to 31: the third job may wait no longer than 25.
    score = evaluate(by_hand(), np.array([0, 0, 1]))
    assert score == Score(2, (7 + 12 + 1) + (7 + 24 + 2) + (31 + 100))
    assert score.merit == pytest.approx(2 / 184, rel=1e-3)
    # One after another: 0 from 7, 2 from 17, 1 from 117.
    score = evaluate(by_hand(), np.array([0, 2, 1]))
    assert score == Score(3, (7 + 10 + 1) + (17 + 100) + (117 + 20 + 2))
    assert Score(0, 10.0).merit > Score(0, 20.0).merit


def test_starts_fill_batches_up_to_the_kv_budget() -> None:
    assert packed(by_hand(), (0, 2, 1)).tolist() == [0, 2, 1]
    assert packed(by_hand(), (1, 0, 2)).tolist() == [0, 0, 1]
    assert packed(by_hand(max_kv_tokens=9), (0, 1, 2)).tolist() == [0, 1, 2]


def test_a_search_is_left_out_only_where_nothing_can_be_gained() -> None:
    easy = by_hand(
        exec_s=np.array([[10.0, 10], [100, 100], [100, 100]]),
        latest_s=np.full((3, 2), EVER),
        max_kv_tokens=100,
    )
    found = search(easy, num_proposals=50)
    assert (found.batch_of.tolist(), found.num_proposals) == ([0, 1, 1], 50)
    single = dataclasses.replace(
        easy, exec_s=easy.exec_s[:, :1], latest_s=easy.latest_s[:, :1]
    )
    assert search(single).num_proposals == 0
    hurried = dataclasses.replace(single, latest_s=np.array([[99.0], [99], [0]]) + 7)
    assert search(hurried, num_proposals=9).num_proposals == 9


def best_score(problem: AnnealingProblem) -> Score:
    """Returns the highest G there is.

    What stands behind a set of jobs only asks how late that set ends. So of all plans
    of one set (any order, any batches) those suffice that no other beats in all three
    of end, jobs attained and sum of latencies. Sets are built up batch by batch.
    """
    num_jobs, max_batch = problem.exec_s.shape
    batches = {
        sum(1 << job for job in jobs): list(jobs)
        for size in range(1, max_batch + 1)
        for jobs in itertools.combinations(range(num_jobs), size)
        if size == 1 or problem.kv_tokens[list(jobs)].sum() <= problem.max_kv_tokens
    }
    # Of each set, as bits: (end, jobs attained, sum of latencies) of its plans.
    kept = [[(problem.start_s, 0, 0.0)]]
    for whole in range(1, 1 << num_jobs):
        plans = []
        for last, jobs in batches.items():
            if last & whole != last:
                continue
            exec_s = problem.exec_s[jobs, len(jobs) - 1]
            latest_s = problem.latest_s[jobs, len(jobs) - 1]
            own_s = float(np.sum(exec_s + problem.waited_s[jobs]))
            for end_s, num_attained, total_s in kept[whole ^ last]:
                plans.append(
                    (
                        end_s + float(np.max(exec_s)),
                        num_attained + int(np.sum(latest_s >= end_s)),
                        total_s + own_s + len(jobs) * end_s,
                    )
                )
        kept.append([])
        for plan in sorted(plans, key=lambda one: (one[0], -one[1], one[2])):
            if not any(one[1] >= plan[1] and one[2] <= plan[2] for one in kept[whole]):
                kept[whole].append(plan)
    return max((Score(*one[1:]) for one in kept[-1]), key=lambda score: score.merit)


def test_within_one_percent_of_the_optimum() -> None:
    """Of instances so small that all their plans can be tried."""
    rng = np.random.default_rng(2025)
    num_judged = 0
    for index in range(30):
        problem = draw(
            rng,
            int(rng.integers(2, 9)),
            (1, 2, 4)[index % 3],
            max_kv_tokens=int(rng.choice([NO_LIMIT, 1500])),
            start_s=float(rng.choice([0, 2])),
            max_waited_ms=int(rng.choice([0, 3000])),
            ttlt_s=float(rng.choice([8, 15, 30])),
            ttft_s=float(rng.choice([3, 10])),
        )
        best = best_score(problem)
        if best.num_attained:
            found = search(problem, num_proposals=2_000)
            assert 0.99 <= found.score.merit / best.merit <= 1 + 1e-9
            num_judged += 1
    assert num_judged >= 20


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    num_jobs=st.integers(1, 30),
    max_batch=st.integers(1, 6),
    max_kv_tokens=st.sampled_from([0, 700, NO_LIMIT]),
    num_proposals=st.sampled_from([0, 1, 7, 200]),
    seed=st.integers(0, 2**32),
)
def test_a_valid_plan_never_below_its_starts(
    num_jobs: int, max_batch: int, max_kv_tokens: int, num_proposals: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    problem = draw(
        rng, num_jobs, max_batch, max_kv_tokens=max_kv_tokens, max_waited_ms=9000
    )
    start = packed(problem, rng.permutation(num_jobs).tolist())
    found = search(problem, num_proposals=num_proposals, seed=seed, starts=(start,))
    check_plan(problem, found.batch_of)
    assert found.score == evaluate(problem, found.batch_of)
    longest_waiting = np.argsort(-problem.waited_s, kind="stable").tolist()
    for one in (start, sorted_start(problem), packed(problem, longest_waiting)):
        assert found.score.merit >= evaluate(problem, one).merit * (1 - 1e-12)


# A prompt token takes 1 ms for each request of the batch, a decode step 10 ms each.
LATENCY = RequestLatency(
    prefill=Bilinear(both=1e-3, batch=0.0, length=0.0, base=0.0),
    decode=Bilinear(both=0.0, batch=10e-3, length=0.0, base=0.0),
)
NOW_S = 50.0


def request(slo: Slo, *, waited_s: float = 2.0) -> Request:
    """100 prompt tokens: alone 100 ms and ten steps of 10 ms, in a pair twice that."""
    return Request(
        request_id="r",
        arrival_s=NOW_S - waited_s,
        prompt_tokens=np.zeros(100, np.int32),
        max_tokens=11,
        slo=slo,
    )


def problem_of(one: Request, **options: Any) -> AnnealingProblem:
    fields: dict[str, Any] = {"now_s": NOW_S, "max_batch": 2, "max_kv_tokens": 999}
    return make_problem([one], LATENCY, **{**fields, **options})


def test_durations_sizes_and_waits() -> None:
    problem = problem_of(request(Slo()), start_s=0.5)
    assert problem.exec_s == pytest.approx(np.array([[0.2, 0.4]]))
    assert problem.waited_s.tolist() == [2.0]
    assert problem.kv_tokens.tolist() == [111]
    assert (problem.start_s, problem.max_kv_tokens) == (0.5, 999)
    assert problem_of(request(Slo(), waited_s=-1.0)).waited_s.tolist() == [0.0]
    beside = problem_of(request(Slo()), num_running=2)
    assert beside.exec_s == pytest.approx(np.array([[0.6, 0.8]]))


@pytest.mark.parametrize(
    ("slo", "latest_s"),
    [
        (Slo(), [EVER, EVER]),
        (Slo(ttlt_s=2.3), [0.1, -0.1]),
        (Slo(ttft_s=3.0), [0.9, 0.8]),
        (Slo(ttft_s=3.0, tbt_s=0.015), [0.9, 0.75]),
        (Slo(ttft_s=3.0, tbt_s=0.001), [0.81, 0.61]),
        # All bounds at once: the completion is the tightest.
        (Slo(ttft_s=3.0, tbt_s=0.02, ttlt_s=2.5), [0.3, 0.1]),
    ],
)
def test_the_longest_wait_that_attains_every_bound(
    slo: Slo, latest_s: list[float]
) -> None:
    assert problem_of(request(slo)).latest_s[0] == pytest.approx(latest_s)


def test_an_answer_begun_has_to_keep_its_next_token() -> None:
    one = request(Slo(ttft_s=3.0, tbt_s=0.5))
    one.output_tokens.extend([1, 1, 1, 1])
    problem = problem_of(one)
    # 104 tokens to compute again and seven to come, the next one due 3 + 4 * 0.5 s
    # after its arrival, the last one 3 + 10 * 0.5 s after.
    assert problem.exec_s[0, 0] == pytest.approx(0.104 + 0.060)
    assert problem.latest_s[0, 0] == pytest.approx(3.0 - 0.104)
