"""Tiers: who begins before whom, whatever the policy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jserve_sched.admission import MAX_AGE_S
from jserve_sched.requests.request import RequestState
from jserve_sched.requests.slo import Slo
from jserve_sched.steps.plan import StepPlan
from tests.fakes import Driver, make_request, make_scheduler

POLICIES = ("fcfs", "edf", "sjf", "laxity", "qoserve", "sliding", "ontime")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    policy=st.sampled_from(POLICIES),
    num_slots=st.integers(1, 6),
    lag=st.integers(0, 1),
    seed=st.integers(0, 2**31),
)
def test_none_begins_while_one_of_a_lower_number_waits(
    policy: str, num_slots: int, lag: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scheduler = make_scheduler(policy=policy, num_pages=24, max_num_seqs=num_slots)
    num_begun = 0

    def check(plan: StepPlan) -> None:
        nonlocal num_begun
        waiting = scheduler.view(driver.now_s).queue.requests
        first = min((one.priority for one in waiting), default=0)
        begun = [
            row.request.priority
            for row in plan.chunks
            if row.request.state is RequestState.WAITING
        ]
        assert set(begun) <= {first}
        num_begun += len(begun)

    driver = Driver(scheduler, lag=lag, on_plan=check)
    requests = [
        make_request(
            int(rng.integers(1, 60)),
            int(rng.integers(1, 12)),
            arrival_s=0.0,
            priority=int(rng.integers(-2, 3)),
            slo=Slo(ttft_s=float(rng.uniform(0.01, 1))) if rng.random() < 0.5 else None,
        )
        for _ in range(12)
    ]
    for one in requests:
        scheduler.submit(one)
        if rng.random() < 0.3:
            driver.step()
    driver.run()
    assert num_begun >= len(requests)


@pytest.mark.parametrize(
    ("policy", "bound_s"), [("fcfs", MAX_AGE_S), ("ontime:max_age_s=1", 1.0)]
)
def test_a_flood_of_lower_numbers_is_overtaken_at_the_bound_on_age(
    policy: str, bound_s: float
) -> None:
    driver: Any = Driver(make_scheduler(policy=policy, max_num_seqs=1), lag=0)
    last = make_request(4, 1, priority=1)
    driver.scheduler.submit(last)
    while last.first_scheduled_s is None and driver.now_s < 2 * bound_s + 1.0:
        flood = make_request(4, 4, arrival_s=driver.now_s)
        driver.scheduler.submit(flood)
        driver.clock.advance(bound_s / 10)
        for _ in range(4):
            driver.step()
    assert last.first_scheduled_s is not None
    assert bound_s <= last.first_scheduled_s <= 2 * bound_s + 1.0


@pytest.mark.parametrize("policy", POLICIES)
def test_forecasts_know_who_begins_before_whom(policy: str) -> None:
    scheduler = make_scheduler(policy=policy, num_pages=64, max_num_seqs=8)
    for _ in range(6):
        scheduler.submit(make_request(200, 5, arrival_s=0.0, priority=1))
    first, middle, last = (
        scheduler.forecast(make_request(60, 5, arrival_s=0.0, priority=tier), 0.0)
        for tier in (0, 1, 2)
    )
    assert first.points[0] <= middle.points[0] <= last.points[0]
    assert first.points[0] < last.points[0]
    old = make_request(60, 5, arrival_s=-MAX_AGE_S * 20, priority=2)
    assert scheduler.forecast(old, 0.0).points[0] < last.points[0]
