from fakes import Driver, make_request, make_scheduler
from jserve_sched.slo import Slo


def test_the_earliest_first_token_deadline_goes_first() -> None:
    scheduler = make_scheduler(policy="edf")
    lax = make_request(16, 2, arrival_s=0.0, slo=Slo(ttft_s=10.0))
    tight = make_request(16, 2, arrival_s=1.0, slo=Slo(ttft_s=1.0))
    free = make_request(16, 2, arrival_s=0.0)
    for request in (free, lax, tight):
        scheduler.submit(request)
    plan = scheduler.plan(1.0)
    assert plan is not None
    assert [row.request for row in plan.chunks] == [tight]
    driver = Driver(scheduler)
    driver.run()
    assert driver.finished == [tight, lax, free]


def test_fcfs_ignores_deadlines() -> None:
    scheduler = make_scheduler(policy="fcfs")
    first = make_request(16, 2, arrival_s=0.0)
    tight = make_request(16, 2, arrival_s=1.0, slo=Slo(ttft_s=1.0))
    for request in (tight, first):
        scheduler.submit(request)
    plan = scheduler.plan(1.0)
    assert plan is not None and plan.chunks[0].request is first


def test_an_urgent_prompt_overtakes_one_partly_prefilled() -> None:
    scheduler = make_scheduler(policy="edf", num_pages=64)
    long = make_request(64, 2, arrival_s=0.0, slo=Slo(ttft_s=50.0))
    scheduler.submit(long)
    plan = scheduler.plan(0.0)
    assert plan is not None
    scheduler.dispatch(plan, 0.0)
    urgent = make_request(8, 2, arrival_s=0.1, slo=Slo(ttft_s=0.5))
    scheduler.submit(urgent)
    plan = scheduler.plan(0.1)
    assert plan is not None
    assert [row.request for row in plan.chunks] == [urgent, long]
