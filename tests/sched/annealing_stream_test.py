import math

import numpy as np
import pytest

from fakes import make_request
from jserve_sched.annealing_kernel import FOREVER_NS, NEVER_NS
from jserve_sched.annealing_stream import make_stream_problem
from jserve_sched.request_latency import Bilinear, RequestLatency
from jserve_sched.slo import Slo

# 1 ms a prompt token; a decode step takes 10 ms and 5 ms for each request in it.
LATENCY = RequestLatency(
    prefill=Bilinear(both=0.0, batch=0.0, length=1e-3, base=0.0),
    decode=Bilinear(both=0.0, batch=5e-3, length=0.0, base=1e-2),
)


def problem_of(*requests, num_together: int = 2, max_kv_tokens: int = 10**6, **fields):
    return make_stream_problem(
        requests,
        LATENCY,
        num_together=num_together,
        max_kv_tokens=max_kv_tokens,
        **{"now_s": 3.0, **fields},
    )


def test_a_request_keeps_the_engine_busy_for_its_share() -> None:
    slo = Slo(ttft_s=5.0, tbt_s=0.1)
    found = problem_of(make_request(100, 11, arrival_s=1.0, slo=slo))
    # 100 ms of prefill, and half of ten steps of 20 ms.
    assert found.exec_ns.tolist() == [[200_000_000]]
    # All decodes keep it busy for 100 ms, all prefills too: the answer takes 400 ms,
    # 300 ms more than its share, after two seconds in the queue.
    assert found.waited_ns.tolist() == [2_300_000_000]
    # The last token is due 4 s from now, the first one 3 s: the tighter bound counts.
    assert found.latest_ns.tolist() == [[2_900_000_000]]


def test_the_kv_pool_says_how_many_run_together() -> None:
    jobs = [make_request(100, 11) for _ in range(4)]
    alone = problem_of(*jobs, num_together=4, max_kv_tokens=150)
    assert alone.exec_ns[0, 0] == 250_000_000
    three = problem_of(*jobs, num_together=4, max_kv_tokens=350)
    assert three.exec_ns[0, 0] == 100_000_000 + round(250_000_000 / 3)


def test_promises_that_cannot_be_kept_or_were_not_given() -> None:
    mean = Slo(ttft_s=99.0, tbt_s=0.02)
    jobs = [make_request(100, 11), make_request(100, 11, slo=mean, arrival_s=3.0)]
    strict = problem_of(*jobs, tpot="mean")
    assert strict.latest_ns[:, 0].tolist() == [FOREVER_NS, NEVER_NS]
    anchored = problem_of(*jobs)
    assert 0 < anchored.latest_ns[1, 0] < FOREVER_NS


def test_no_time_is_too_long_to_be_added_up() -> None:
    slow = RequestLatency(
        prefill=LATENCY.prefill,
        decode=Bilinear(both=0.0, batch=0.0, length=0.0, base=1e12),
    )
    jobs = [make_request(100, 11, arrival_s=-1e9) for _ in range(256)]
    found = make_stream_problem(
        jobs, slow, now_s=1e9, num_together=1, max_kv_tokens=10, start_s=math.inf
    )
    assert np.all(found.exec_ns > 0)


def test_nothing_to_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="0 requests"):
        problem_of()
    with pytest.raises(ValueError, match="num_together=0"):
        problem_of(make_request(), num_together=0)
