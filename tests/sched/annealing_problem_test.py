import dataclasses

import numpy as np
import pytest

from jserve_sched.annealing_kernel import FOREVER_NS, NEVER_NS
from jserve_sched.annealing_problem import (
    AnnealingProblem,
    Score,
    make_problem,
)
from jserve_sched.request import Request
from jserve_sched.request_latency import Bilinear, RequestLatency
from jserve_sched.slo import Slo

# A prompt token takes 1 ms for each request of the batch, a decode step 10 ms each.
LATENCY = RequestLatency(
    prefill=Bilinear(both=1e-3, batch=0.0, length=0.0, base=0.0),
    decode=Bilinear(both=0.0, batch=10e-3, length=0.0, base=0.0),
)
NOW_S = 50.0
MS = 10**6


def request(slo: Slo, *, max_tokens: int = 11, waited_s: float = 2.0) -> Request:
    """100 prompt tokens: alone 100 ms and ten steps of 10 ms, in a pair twice that."""
    return Request(
        request_id="r",
        arrival_s=NOW_S - waited_s,
        prompt_tokens=np.zeros(100, np.int32),
        max_tokens=max_tokens,
        slo=slo,
    )


def problem_of(one: Request, **options: object) -> AnnealingProblem:
    fields = {"now_s": NOW_S, "max_batch": 2, "max_kv_tokens": 999}
    return make_problem([one], LATENCY, **{**fields, **options})


def test_durations_sizes_and_waits() -> None:
    problem = problem_of(request(Slo()), start_s=0.5)
    assert problem.exec_ns.tolist() == [[200 * MS, 400 * MS]]
    assert problem.waited_ns.tolist() == [2000 * MS]
    assert problem.kv_tokens.tolist() == [111]
    assert (problem.start_ns, problem.max_kv_tokens) == (500 * MS, 999)
    assert (problem.num_jobs, problem.max_batch) == (1, 2)
    assert problem_of(request(Slo(), waited_s=-1.0)).waited_ns.tolist() == [0]


def test_a_batch_joins_what_runs() -> None:
    beside = problem_of(request(Slo(ttlt_s=5.0)), num_running=2)
    among = problem_of(request(Slo(ttlt_s=5.0)), max_batch=4)
    assert beside.exec_ns.tolist() == among.exec_ns[:, 2:].tolist()
    assert beside.latest_ns.tolist() == among.latest_ns[:, 2:].tolist()


@pytest.mark.parametrize(
    ("slo", "tpot", "latest_ms"),
    [
        (Slo(), "mean", None),
        (Slo(ttlt_s=3.0), "mean", [800, 600]),
        (Slo(ttlt_s=2.3), "mean", [100, -100]),
        (Slo(ttft_s=3.0), "mean", [900, 800]),
        # Ten gaps of 10 ms alone, of 20 ms in a pair.
        (Slo(ttft_s=3.0, tbt_s=0.015), "mean", [900, NEVER_NS // MS]),
        (Slo(ttft_s=3.0, tbt_s=0.02), "mean", [900, 800]),
        (Slo(ttft_s=3.0, tbt_s=0.015), "anchored", [900, 750]),
        (Slo(ttft_s=3.0, tbt_s=0.001), "anchored", [810, 610]),
        # All bounds at once: the completion is the tightest.
        (Slo(ttft_s=3.0, tbt_s=0.02, ttlt_s=2.5), "anchored", [300, 100]),
    ],
)
def test_the_longest_wait_that_keeps_every_promise(
    slo: Slo, tpot: str, latest_ms: list[int] | None
) -> None:
    found = problem_of(request(slo), tpot=tpot).latest_ns
    if latest_ms is None:
        assert np.all(found == FOREVER_NS)
    else:
        never = NEVER_NS // MS
        expected = [NEVER_NS if ms == never else ms * MS for ms in latest_ms]
        np.testing.assert_allclose(found[0], expected, atol=1)


def test_an_answer_begun_is_held_to_its_next_token() -> None:
    one = request(Slo(ttft_s=3.0, tbt_s=0.5))
    one.output_tokens.extend([1, 1, 1, 1])
    problem = problem_of(one)
    # 104 tokens to compute again and seven to come, the next one due 3 + 4 * 0.5 s
    # after its arrival, the last one 3 + 10 * 0.5 s after.
    assert problem.exec_ns[0, 0] == (104 + 60) * MS
    assert problem.latest_ns[0, 0] == pytest.approx((3000 - 104) * MS, abs=1)
    started = request(Slo(ttft_s=3.0))
    started.output_tokens.append(1)
    assert problem_of(started).latest_ns[0, 0] == FOREVER_NS


def test_endless_times_do_not_overflow() -> None:
    slow = RequestLatency(
        prefill=Bilinear(both=1e9, batch=0.0, length=0.0, base=0.0),
        decode=LATENCY.decode,
    )
    many = [request(Slo(ttlt_s=3.0), waited_s=1e12) for _ in range(50)]
    problem = make_problem(
        many, slow, now_s=NOW_S, max_batch=2, max_kv_tokens=9, start_s=1e12
    )
    assert np.all(problem.latest_ns < 0)


def test_a_promise_for_the_end_of_time_is_none() -> None:
    found = problem_of(request(Slo(ttlt_s=1e308))).latest_ns
    assert np.all(found == FOREVER_NS)


def test_no_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="0 requests, max_batch=2"):
        make_problem([], LATENCY, now_s=0.0, max_batch=2, max_kv_tokens=9)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"exec_ns": np.ones(2, np.int64)}, "must be .jobs, batch sizes."),
        ({"latest_ns": np.ones((2, 2), np.int64)}, "latest_ns must be int64 .2, 1."),
        ({"kv_tokens": np.ones(2)}, "kv_tokens must be int64 .2,., got float64"),
        ({"exec_ns": np.zeros((2, 1), np.int64)}, "exec_ns has 0, below 1"),
        ({"waited_ns": np.array([0, -3])}, "waited_ns has -3, below 0"),
        ({"start_ns": -1}, "start_ns=-1"),
        ({"exec_ns": np.full((2, 1), 2**61)}, "latencies sum up to"),
    ],
)
def test_bad_tables_are_refused(change: dict[str, object], says: str) -> None:
    good = AnnealingProblem(
        exec_ns=np.ones((2, 1), np.int64),
        latest_ns=np.ones((2, 1), np.int64),
        waited_ns=np.zeros(2, np.int64),
        kv_tokens=np.ones(2, np.int64),
        max_kv_tokens=2,
    )
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(good, **change)


def test_merit_ranks_plans_that_meet_nobody() -> None:
    assert Score(0, 10).goal == Score(0, 20).goal == 0.0
    assert Score(0, 10).merit > Score(0, 20).merit
    assert Score(1, 2 * 10**9).goal == 0.5
