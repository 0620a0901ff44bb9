import numpy as np
import pytest

from jserve_sched.buckets.table import BucketTable
from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.in_order import ShortestJobFirst
from jserve_sched.policies.laxity import LeastLaxityFirst, laxities_s
from jserve_sched.policies.registry import make_policy
from jserve_sched.requests.facts import facts_of
from jserve_sched.requests.request import Request
from jserve_sched.requests.slo import Slo
from jserve_sched.timing.request_latency import Bilinear, RequestLatency
from tests.fakes import begin, make_request
from tests.step_costs import Curve, make_view

# A prompt token takes 1 ms; a decode step 10 ms and 1 ms for each row.
LATENCY = RequestLatency(
    prefill=Bilinear(both=1e-3, batch=0, length=0, base=0),
    decode=Bilinear(both=0, batch=1e-3, length=0, base=0.01),
)
TABLE = BucketTable((8,), (0, 64), block_tokens=4)


def view_of(
    *waiting: Request, running: tuple[Request, ...] = (), now_s: float = 0.0
) -> SchedulerView:
    return make_view(
        TABLE,
        Curve(lambda tokens: 0.001 + 1e-4 * tokens),
        running=running,
        waiting=waiting,
        now_s=now_s,
        latency=LATENCY,
    )


def order_of(view: SchedulerView) -> list[str]:
    plan = LeastLaxityFirst().plan(view)
    assert plan is not None
    return [row.request.request_id for row in plan.chunks]


def waiting(name: str, tokens: int, *, max_tokens: int = 4, **slo: float) -> Request:
    return make_request(tokens, max_tokens, request_id=name, slo=Slo(**slo))


def decoding(tokens: int, max_tokens: int, **slo: float) -> Request:
    """A running request with one output token."""
    return begin(make_request(tokens, max_tokens, slo=Slo(**slo)))


def laxity_s(request: Request, view: SchedulerView) -> float:
    return float(laxities_s(view, facts_of([request]))[0])


def test_laxity_is_the_time_that_is_not_needed() -> None:
    first = waiting("first", 100, ttft_s=2.0)
    assert laxity_s(first, view_of(first, now_s=0.5)) == pytest.approx(2 - 0.5 - 0.1)
    whole = waiting("whole", 100, max_tokens=21, ttlt_s=2.0)
    # Its prompt, and 20 decode steps by itself.
    assert laxity_s(whole, view_of(whole)) == pytest.approx(2 - 0.1 - 20 * 0.011)
    whole.predict(11)
    assert laxity_s(whole, view_of(whole)) == pytest.approx(2 - 0.1 - 10 * 0.011)
    free = waiting("free", 100)
    assert laxity_s(free, view_of(free)) == np.inf


def test_a_decode_needs_steps_beside_those_that_run() -> None:
    one = decoding(16, 9, ttft_s=1.0, tbt_s=0.5)
    other = decoding(16, 9, ttlt_s=4.0)
    view = view_of(running=(one, other), now_s=1.0)
    assert laxity_s(one, view) == pytest.approx(1.5 - 1.0 - 0.012)
    assert laxity_s(other, view) == pytest.approx(4 - 1.0 - 8 * 0.012)


def test_a_long_prompt_goes_before_a_short_one_due_earlier() -> None:
    short = waiting("short", 8, ttft_s=0.30)
    long = waiting("long", 200, ttft_s=0.35)
    assert order_of(view_of(short, long)) == ["long", "short"]
    edf = make_policy("edf").plan(view_of(short, long))
    assert edf is not None and edf.chunks[0].request is short


def test_the_late_come_last_by_arrival_and_the_guarded_do_not() -> None:
    late = [
        make_request(100, 2, request_id=name, arrival_s=arrival_s, slo=Slo(ttft_s=ttft))
        for name, arrival_s, ttft in (("later", 0.02, 0.01), ("sooner", 0.01, 0.05))
    ]
    guarded = make_request(
        20, 2, request_id="guarded", slo=Slo(ttft_s=0.01), guard=True
    )
    fine = waiting("fine", 20, ttft_s=5.0)
    free = waiting("free", 4)
    view = view_of(*late, free, fine, guarded, now_s=0.03)
    assert order_of(view) == ["guarded", "fine", "free", "sooner", "later"]


def test_a_job_is_the_rest_of_its_prompt_and_of_its_answer() -> None:
    fresh, begun = make_request(60, 9), begin(make_request(500, 9), 480)
    fresh.predict(5)
    view = view_of(fresh, running=(begun,))
    left_s = ShortestJobFirst().key(view, facts_of([fresh, begun]))
    # In a batch of eight a prompt token takes 8 ms, a decode step 18 ms.
    assert left_s.tolist() == pytest.approx(
        [60 * 0.008 + 4 * 0.018, 20 * 0.008 + 8 * 0.018]
    )
    plan = ShortestJobFirst().plan(view)
    assert plan is not None and [row.request for row in plan.chunks] == [begun, fresh]
