"""Admission by a searched plan: when it searches, whom it lets in, and when."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import STEP_S, Driver, make_request, make_scheduler
from jserve_sched.annealing_kernel import PYTHON_KERNEL
from jserve_sched.buckets import BucketTable
from jserve_sched.clock import ManualClock
from jserve_sched.outlook import Outlook
from jserve_sched.plan import PlanEnd, StepPlan
from jserve_sched.policies import PlannedAdmission, SearchLimit, make_policy
from jserve_sched.request import Request, RequestState
from jserve_sched.request_latency import Bilinear, LatencySource, RequestLatency
from jserve_sched.slo import Slo
from jserve_sched.view import SchedulerView
from step_costs import Curve, make_view

TABLE = BucketTable((8,), (0, 64), block_tokens=4)
# One request alone: 1 ms a prompt token, 10 ms an output token; twice as slow for two.
LATENCY = RequestLatency(
    prefill=Bilinear(both=1e-3, batch=0.0, length=0.0, base=0.0),
    decode=Bilinear(both=0.0, batch=1e-2, length=0.0, base=0.0),
)


def planner(spec: str) -> PlannedAdmission:
    policy = make_policy(spec)
    assert isinstance(policy, PlannedAdmission)
    return policy


def job(name: str, *, tokens: int = 10, ttlt_s: float = 99.0, **fields) -> Request:
    slo = Slo(ttlt_s=ttlt_s)
    return make_request(10, tokens, request_id=name, slo=slo, **fields)


def running(name: str) -> Request:
    request = make_request(4, 8, request_id=name)
    request.output_tokens.append(1)
    request.num_dispatched = 4
    request.slot, request.pages = 0, [0]
    request.state = RequestState.RUNNING
    return request


def view_of(*waiting: Request, now_s: float = 0.0, **fields) -> SchedulerView:
    view = make_view(
        TABLE,
        Curve(lambda tokens: 0.001 + 1e-4 * tokens),
        waiting=waiting,
        running=fields.pop("running", ()),
        now_s=now_s,
    )
    return dataclasses.replace(view, latency_source=LatencySource(LATENCY), **fields)


def outlook(*batches: tuple[str, ...], cap: int | None = None) -> Outlook:
    return Outlook(
        order=tuple(name for batch in batches for name in batch),
        batches=tuple(turn for turn, batch in enumerate(batches) for _ in batch),
        cap=cap,
        made_s=0.0,
        epoch=0,
    )


def admitted(plan: StepPlan | None) -> list[str]:
    assert plan is not None
    return [row.request.request_id for row in plan.chunks]


def test_it_searches_after_a_change_but_not_too_often() -> None:
    policy = planner("annealing:interval_s=0.5:proposals=10")
    view = view_of(job("a"), job("b"), epoch=7, now_s=1.0)
    first = policy.revise(view)
    assert first is not None
    assert (first.epoch, first.made_s, sorted(first.order)) == (7, 1.0, ["a", "b"])
    later = dataclasses.replace(view, outlook=first, now_s=1.6)
    assert policy.revise(later) is None, "nothing has changed"
    later = dataclasses.replace(later, epoch=8)
    assert policy.revise(later) is not None
    assert policy.revise(dataclasses.replace(later, now_s=1.4)) is None, "too soon"
    assert policy.revise(dataclasses.replace(later, num_free_slots=0)) is None
    assert policy.revise(view_of(epoch=8)) is None, "nobody waits"


def test_the_search_puts_first_who_could_else_not_be_met() -> None:
    # Each takes 0.1 s alone; "tight" is late unless it is first, and all fit so.
    jobs = [job("a"), job("b"), job("c"), job("tight", ttlt_s=0.15)]
    policy = planner("annealing:max_batch=1")
    found = policy.revise(view_of(*jobs))
    assert found is not None
    assert found.order[0] == "tight"
    assert found.batches == (0, 1, 2, 3)
    assert found.cap is None
    assert found.goal > 0
    capped = planner("annealing:max_batch=1:cap=on").revise(view_of(*jobs))
    assert capped is not None
    assert capped.cap == 1


def test_a_search_begins_with_the_last_plan() -> None:
    rng = np.random.default_rng(3)
    jobs = [
        job(
            f"j{index:02}",
            tokens=int(rng.integers(5, 80)),
            ttlt_s=float(rng.uniform(0.5, 9)),
        )
        for index in range(24)
    ]
    good = planner("annealing:max_batch=2:proposals=4000")
    idle = planner("annealing:max_batch=2:proposals=1")
    view = view_of(*jobs)
    best, cold = good.revise(view), idle.revise(view)
    assert best is not None and cold is not None
    assert best.goal > cold.goal
    warm = idle.revise(dataclasses.replace(view, outlook=best, epoch=1, now_s=0.05))
    assert warm is not None
    assert warm.start_goal > cold.goal, "the last plan is the better start"


def test_admission_goes_by_turn_and_newcomers_go_behind() -> None:
    waiting = [job(name) for name in ("a", "b", "c", "new")]
    view = view_of(*waiting, outlook=outlook(("c", "a"), ("gone", "b")))
    for spec in ("annealing", "annealing+sliding"):
        assert admitted(make_policy(spec).plan(view)) == ["c", "a", "b", "new"]
    without = dataclasses.replace(view, outlook=None)
    assert admitted(make_policy("annealing").plan(without)) == ["a", "b", "c", "new"]


@pytest.mark.parametrize("name", ["annealing", "annealing+sliding"])
def test_the_cap_counts_who_runs(name: str) -> None:
    spec = f"{name}:model=batches:cap=on"
    waiting = [job("a"), job("b"), job("c")]
    capped = outlook(("a", "b", "c"), cap=2)
    view = view_of(*waiting, running=[running("r")], outlook=capped)
    plan = make_policy(spec).plan(view)
    assert plan is not None
    assert admitted(plan) == ["a"]
    assert plan.ended_by is PlanEnd.HELD_BACK
    free = dataclasses.replace(view, outlook=outlook(("a", "b", "c")))
    assert admitted(make_policy(spec).plan(free)) == ["a", "b", "c"]
    done = dataclasses.replace(view, outlook=outlook(("x", "y"), cap=1))
    assert admitted(make_policy(spec).plan(done)) == ["a", "b", "c"], "none is planned"


@pytest.mark.parametrize("cap", [1, None])
def test_the_aged_go_first_by_arrival_cap_or_not(cap: int | None) -> None:
    old = [job("old2", arrival_s=1.0), job("old1", arrival_s=0.5)]
    young = [job("y1", arrival_s=50.0), job("y2", arrival_s=51.0)]
    view = view_of(
        *old,
        *young,
        now_s=60.0,
        running=[running("r")],
        outlook=outlook(("y2", "y1"), ("old2", "old1"), cap=cap),
    )
    plan = make_policy("annealing:max_age_s=30").plan(view)
    assert admitted(plan) == ["old1", "old2", *(() if cap else ("y2", "y1"))]


def test_the_aged_are_not_searched_but_their_time_counts() -> None:
    old = [job(f"old{index}", tokens=100) for index in range(4)]  # 1 s each
    young = [job("late", ttlt_s=2.0, arrival_s=60.0), job("fine", arrival_s=60.0)]
    view = view_of(*old, *young, now_s=60.0)
    aged = planner("annealing:max_age_s=30:max_batch=1").revise(view)
    assert aged is not None
    assert sorted(aged.order) == ["fine", "late"]
    alone = planner("annealing:max_batch=1").revise(view_of(*young, now_s=60.0))
    assert alone is not None
    assert alone.goal > 4 * aged.goal, "they start four seconds later"


def test_only_a_window_is_searched() -> None:
    waiting = [job(f"j{index}", tokens=1 + index % 40) for index in range(50)]
    found = planner("annealing:window=10:proposals=5").revise(view_of(*waiting))
    assert found is not None
    assert len(found.order) == 10


def test_the_clock_ends_a_search() -> None:
    clock = ManualClock()

    def table(values: np.ndarray) -> list:
        clock.advance(1e-3)  # as if it took that long
        return PYTHON_KERNEL.table(values)

    kernel = dataclasses.replace(PYTHON_KERNEL, table=table, slice_proposals=1)
    jobs = [job(f"j{index}", ttlt_s=0.2) for index in range(6)]
    policy = dataclasses.replace(planner("annealing:max_batch=2"), kernel=kernel)
    endless = dataclasses.replace(policy, limit=SearchLimit(clock, 1e9))
    found = endless.revise(view_of(*jobs))
    assert found is not None
    assert found.num_proposals == policy.proposals
    assert found.search_s == pytest.approx(clock.now_s())
    short = dataclasses.replace(policy, limit=SearchLimit(clock, 2e-3))
    found = short.revise(view_of(*jobs))
    assert found is not None
    assert found.num_proposals == 0
    assert sorted(found.order) == sorted(one.request_id for one in jobs)


def test_a_view_gives_one_outlook_and_one_plan() -> None:
    jobs = [job(f"j{index}", tokens=5 + index % 7, ttlt_s=0.4) for index in range(12)]
    view = view_of(*jobs, epoch=5)
    for spec in ("annealing:max_batch=3", "annealing+sliding:max_batch=3"):
        policy = planner(spec)
        first = policy.revise(view)
        assert first == policy.revise(view)
        planned = dataclasses.replace(view, outlook=first)
        plan = policy.plan(planned)
        assert len(admitted(plan)) == 8, "every row is taken"
        assert plan == make_policy(spec).plan(planned)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("proposals=0", "proposals=0 is below 1"),
        ("interval_s=-1", "interval_s=-1.0 is below 0"),
        ("window=1", "window=1 is below 2"),
        ("tpot=median", r"annealing:tpot=median is not one of \['anchored', 'mean'\]"),
        ("chunk_tokens=-1", "chunk_tokens=-1 is below 0"),
        ("cap=on:model=stream", "cap=on needs model=batches"),
        ("kernel=fast", "no option 'kernel=fast'"),
        ("limit=1", "no option 'limit=1'"),
    ],
)
def test_wrong_options_are_refused(option: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(f"annealing:{option}")


MAX_AGE_S = 0.4


@dataclasses.dataclass(frozen=True)
class Flood:
    """Short urgent requests without end, and some long ones among them."""

    policy: str
    num_slots: int
    num_pages: int
    lag: int
    seed: int
    wrong_by: float  # predicted lengths are this much off


floods = st.builds(
    Flood,
    policy=st.sampled_from(
        [
            "annealing:model=batches:cap=on",
            "annealing:model=batches",
            "annealing+sliding:model=batches:cap=on",
            "annealing+sliding:model=stream",
        ]
    ),
    num_slots=st.integers(1, 3),
    num_pages=st.integers(8, 16),
    lag=st.integers(0, 1),
    seed=st.integers(0, 2**31),
    wrong_by=st.sampled_from([0.1, 1.0, 10.0]),
)


def serve(flood: Flood) -> list[tuple[Request, float]]:
    """Serves a flood; returns each request and when it was let in."""
    rng = np.random.default_rng(flood.seed)
    scheduler = make_scheduler(
        policy=f"{flood.policy}:proposals=15:max_batch=2"
        f":max_age_s={MAX_AGE_S}:interval_s=0.02",
        num_pages=flood.num_pages,
        max_num_seqs=flood.num_slots,
    )
    driver = Driver(scheduler, lag=flood.lag)
    served: list[tuple[Request, float]] = []

    def check(plan: StepPlan) -> None:
        new = [
            row.request
            for row in plan.chunks
            if row.request.state is RequestState.WAITING
        ]
        names = {one.request_id for one in new}
        aged = [
            one
            for one in scheduler.view(driver.now_s).waiting
            if driver.now_s - one.arrival_s > MAX_AGE_S and one.request_id not in names
        ]
        for one in new:
            served.append((one, driver.now_s))
            assert all(one.arrival_s <= other.arrival_s for other in aged)

    driver.on_plan = check
    for _ in range(100):
        while scheduler.num_waiting < 4:
            is_long = rng.random() < 0.15
            request = make_request(
                int(rng.integers(24, 40) if is_long else rng.integers(1, 6)),
                int(rng.integers(12, 20) if is_long else rng.integers(1, 4)),
                arrival_s=driver.now_s,
                slo=Slo(ttlt_s=30.0) if is_long else Slo(ttft_s=0.1, tbt_s=0.05),
            )
            scheduler.submit(request)
            request.predict(round(request.max_tokens * flood.wrong_by))
        driver.step()
    return served


@settings(max_examples=30, deadline=None, derandomize=True)
@given(floods)
def test_nobody_waits_longer_than_the_bound_on_age(flood: Flood) -> None:
    served = serve(flood)
    first_s: dict[str, float] = {}
    for request, now_s in served:
        first_s.setdefault(request.request_id, now_s)
    requests = {request.request_id: request for request, _ in served}
    longest_s = STEP_S * (20 + 40 + 4)  # the longest answer, a chunk at a time
    assert len(requests) > 10
    for name, request in requests.items():
        aged_s = request.arrival_s + MAX_AGE_S
        before = [
            other
            for key, other in requests.items()
            if other.arrival_s < request.arrival_s and first_s[key] > aged_s
        ]
        again = sum(1 for one, now_s in served if now_s > first_s[one.request_id])
        rounds = len(before) + again + 1
        assert first_s[name] <= aged_s + rounds * longest_s
