"""Admission by a searched plan: when it searches, whom it lets in, and when."""

import dataclasses

import numpy as np
import pytest

from fakes import Driver, make_request, make_scheduler
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


def test_an_id_used_again_does_not_inherit_a_turn() -> None:
    scheduler = make_scheduler(
        policy="annealing:max_batch=1:interval_s=1000", max_num_seqs=1
    )
    driver = Driver(scheduler, lag=0)
    for name, tokens in (("a", 30), ("b", 20), ("x", 2), ("first", 1)):
        scheduler.submit(job(name, tokens=tokens))
    driver.step()
    planned = scheduler.view(driver.now_s).outlook
    assert planned is not None
    assert planned.order == ("first", "x", "b", "a")
    scheduler.cancel("x")
    scheduler.submit(job("x", tokens=90, arrival_s=driver.now_s))
    driver.run()
    names = [one.request_id for one in driver.finished]
    assert names == ["first", "b", "a", "x"]


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


@pytest.mark.parametrize("name", ["annealing", "annealing+sliding"])
def test_the_aged_are_preempted_last_the_first_to_come_last_of_all(name: str) -> None:
    def one(name: str, arrival_s: float, due_s: float) -> Request:
        request = running(name)
        request.arrival_s = arrival_s
        request.pacing = Slo(ttlt_s=due_s - arrival_s).pacing(arrival_s, 8)
        return request

    runs = [
        one("old2", 2.0, 900.0),  # may end long after the others
        one("late", 40.0, 41.0),
        one("old1", 1.0, 50.0),  # is late
        one("fine", 41.0, 500.0),
        one("soon", 42.0, 62.0),
    ]
    policy = planner(f"{name}:max_age_s=30")
    candidates = policy.candidates(view_of(now_s=60.0, running=runs))
    victims = [victim.request_id for victim in candidates.victims(runs[2])]
    assert victims == ["late", "fine", "soon", "old2"]
    assert [one.request_id for one in candidates.victims(runs[4])] == ["late", "fine"]


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


def test_of_thousands_of_aged_not_each_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_priced = 0
    exec_s = RequestLatency.exec_s

    def counted(self, batch, prompt_tokens, output_tokens):
        nonlocal num_priced
        num_priced += np.size(batch)
        return exec_s(self, batch, prompt_tokens, output_tokens)

    monkeypatch.setattr(RequestLatency, "exec_s", counted)
    old = [job(f"old{index:04}", tokens=100) for index in range(2000)]  # 1 s each
    young = job("young", ttlt_s=1e6, arrival_s=60.0)
    found = planner("annealing:max_age_s=30:max_batch=1").revise(
        view_of(*old, young, now_s=60.0)
    )
    assert found is not None
    assert found.goal == pytest.approx(1 / (2000 + 0.1))
    assert num_priced <= 256


# Whoever runs beside it, a request takes 1 ms a prompt token and 10 ms an output token.
ROOMY = RequestLatency(
    prefill=Bilinear(both=0.0, batch=0.0, length=1e-3, base=0.0),
    decode=Bilinear(both=0.0, batch=0.0, length=0.0, base=1e-2),
)


def test_no_batch_is_larger_than_the_free_slots() -> None:
    jobs = [job(name, tokens=99) for name in "abc"]
    jobs.append(job("tight", tokens=100, ttlt_s=1.2))  # 1.01 s; 1 s for the others
    view = view_of(
        *jobs, running=[running(f"r{index}") for index in range(7)], max_num_seqs=8
    )
    view = dataclasses.replace(view, latency_source=LatencySource(ROOMY))
    wide = planner("annealing").revise(dataclasses.replace(view, num_free_slots=4))
    assert wide is not None
    assert wide.batches == (0, 0, 0, 0)
    narrow = planner("annealing").revise(dataclasses.replace(view, num_free_slots=1))
    assert narrow is not None
    assert narrow.batches == (0, 1, 2, 3)
    assert narrow.order[0] == "tight", "behind any other it would be late"


def test_what_runs_slows_a_batch_and_holds_kv() -> None:
    jobs = [job("a"), job("b")]
    empty, beside = (
        planner("annealing:max_batch=1").revise(view_of(*jobs, running=others))
        for others in ((), [running("r")])
    )
    assert empty is not None and beside is not None
    assert beside.goal == pytest.approx(empty.goal / 2)
    view = dataclasses.replace(view_of(*jobs), latency_source=LatencySource(ROOMY))
    pool = view.ledger.num_pages * view.ledger.page_size
    full = running("r")
    full.max_tokens = pool
    full.predict(pool - 4 - 40)  # 40 tokens are left: two jobs of 20
    for spare, batches in ((0, (0, 0)), (1, (0, 1))):
        full.predict(full.predicted_output_tokens + spare)
        found = planner("annealing").revise(dataclasses.replace(view, running=[full]))
        assert found is not None
        assert found.batches == batches


def test_the_cap_is_what_a_batch_and_what_runs_make_together() -> None:
    jobs = [job("a"), job("b"), job("c")]
    view = view_of(*jobs, running=[running("r"), running("s")])
    found = planner("annealing:max_batch=1:cap=on").revise(view)
    assert found is not None
    assert found.cap == 3


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
        ("window=257", "window=257 is above 256"),
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
