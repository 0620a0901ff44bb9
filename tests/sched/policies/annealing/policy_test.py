# mypy: disable-error-code="attr-defined"
"""Admission by a searched plan: when it searches, whom it lets in, and when."""

import dataclasses
import itertools
import math

import pytest

from jserve_sched.buckets.table import BucketTable
from jserve_sched.planning.candidates import Candidates, choose_waiting
from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.annealing.policy import (
    Annealing,
    FoundOrder,
    SearchLimit,
)
from jserve_sched.policies.annealing.problem import AnnealingProblem
from jserve_sched.policies.registry import make_policy
from jserve_sched.requests.request import Request
from jserve_sched.requests.slo import Slo
from jserve_sched.steps.plan import StepPlan
from jserve_sched.timing.request_latency import Bilinear, RequestLatency
from tests.fakes import begin, make_request
from tests.step_costs import Curve, make_view

TABLE = BucketTable((8,), (0, 64), block_tokens=4)
# One request alone: 1 ms a prompt token, 10 ms an output token; twice as slow for two.
LATENCY = RequestLatency(
    prefill=Bilinear(both=1e-3, batch=0.0, length=0.0, base=0.0),
    decode=Bilinear(both=0.0, batch=1e-2, length=0.0, base=0.0),
)


def planner(spec: str, *order: str, limit: SearchLimit | None = None) -> Annealing:
    """A policy that remembers an order of an older queue, if one is given."""
    policy = make_policy(spec, limit=limit)
    assert isinstance(policy, Annealing)
    if order:
        turns = {name: turn for turn, name in enumerate(order)}
        policy.found = FoundOrder(turns, made_s=0.0, num_changes=-1)
    return policy


def search(policy: Annealing, view: SchedulerView) -> tuple[str, ...] | None:
    """The order that the policy finds, if it searches at all."""
    before = policy.found
    policy.search_if_due(view)
    if policy.found is before:
        return None
    assert policy.found is not None
    return tuple(policy.found.turns)


def job(name: str, *, tokens: int = 10, ttlt_s: float = 99.0, **fields) -> Request:
    slo = Slo(ttlt_s=ttlt_s)
    return make_request(10, tokens, request_id=name, slo=slo, **fields)


def running(name: str) -> Request:
    return begin(make_request(4, 8, request_id=name))


def view_of(*waiting: Request, now_s: float = 0.0, **fields) -> SchedulerView:
    runs = fields.pop("running", ())
    view = make_view(
        TABLE,
        Curve(lambda tokens: 0.001 + 1e-4 * tokens),
        waiting=waiting,
        running=runs,
        now_s=now_s,
        latency=LATENCY,
    )
    slots = {
        "max_num_seqs": len(runs) + fields.get("num_free_slots", view.max_num_seqs)
    }
    return dataclasses.replace(view, **slots | fields)


def problem_of(policy: Annealing, view: SchedulerView) -> AnnealingProblem:
    """What the policy searches, with this view."""
    requests = choose_waiting(view, first=policy._num_aged(view)).requests
    return policy._problem(view, requests)


def admitted(plan: StepPlan | None) -> list[str]:
    assert plan is not None
    return [row.request.request_id for row in plan.chunks]


def test_it_searches_after_a_change_but_not_too_often() -> None:
    policy = planner("annealing:proposals=10")
    view = view_of(job("a"), job("b"), now_s=1.0)
    assert sorted(search(policy, view) or ()) == ["a", "b"]
    later = dataclasses.replace(view, now_s=1.06)
    assert search(policy, later) is None, "nothing has changed"
    view.queue.add(job("c"))
    assert search(policy, dataclasses.replace(later, now_s=1.04)) is None, "too soon"
    assert search(policy, dataclasses.replace(later, num_free_slots=0)) is None
    assert search(policy, later) is not None
    first = view.waiting[0]
    view.queue.remove(first)
    admitted = dataclasses.replace(later, now_s=3.0, num_free_slots=7)
    assert search(policy, admitted) is None, "an admission does not count"
    first.num_preemptions = 1
    view.queue.add(first)
    assert search(policy, dataclasses.replace(later, now_s=3.0)) is not None
    view.queue.remove(first)
    assert search(policy, dataclasses.replace(later, now_s=4.0)) is not None, "an end"
    assert search(policy, view_of(now_s=9.0)) is None, "the queue is empty"
    assert policy.searches.num_searches == 4


def test_the_search_puts_first_the_request_that_would_else_be_late() -> None:
    # Each takes 0.1 s alone; "tight" is late unless it is first, and all fit so.
    jobs = [job("a"), job("b"), job("c"), job("tight", ttlt_s=0.15)]
    found = search(planner("annealing"), view_of(*jobs, num_free_slots=1))
    assert found is not None
    assert found[0] == "tight"


def test_admission_goes_by_turn_and_newcomers_go_behind() -> None:
    waiting = [job(name) for name in ("a", "b", "c", "new")]
    view = view_of(*waiting)
    order = ("c", "a", "gone", "b")
    policy = planner("annealing", *order)
    assert admitted(policy.plan(view)) == ["c", "a", "b", "new"]


def test_the_aged_go_first_by_arrival() -> None:
    old = [job("old2", arrival_s=1.0), job("old1", arrival_s=0.5)]
    young = [job("y1", arrival_s=50.0), job("y2", arrival_s=51.0)]
    view = view_of(*old, *young, now_s=60.0)
    policy = planner("annealing:max_age_s=30", "y2", "y1", "old2", "old1")
    assert policy.found is not None
    policy.found = policy.found._replace(made_s=60.0)
    assert admitted(policy.plan(view)) == ["old1", "old2", "y2", "y1"]


def test_the_aged_are_preempted_last_the_first_to_come_last_of_all() -> None:
    def one(name: str, arrival_s: float, due_s: float) -> Request:
        request = running(name)
        request.arrival_s = arrival_s
        request.slo = Slo(ttlt_s=due_s - arrival_s)
        request.pacing = request.slo.pacing(arrival_s, 8)
        return request

    runs = [
        one("old2", 2.0, 900.0),  # may end long after the others
        one("late", 40.0, 41.0),
        one("old1", 1.0, 50.0),  # is late
        one("fine", 41.0, 500.0),
        one("soon", 42.0, 62.0),
    ]
    view = view_of(now_s=60.0, running=runs)
    candidates = Candidates(view, (), aged_before_s=30.0)
    victims = [victim.request_id for victim in candidates.victims(runs[2])]
    assert victims == ["late", "fine", "soon", "old2"]
    assert [one.request_id for one in candidates.victims(runs[4])] == ["late", "fine"]


def test_the_aged_are_not_searched_but_their_time_counts() -> None:
    old = [job(f"old{index}", tokens=101) for index in range(4)]  # 1.01 s each
    young = [job("late", ttlt_s=2.0, arrival_s=60.0), job("fine", arrival_s=60.0)]
    fields = {"now_s": 60.0, "num_free_slots": 1, "max_num_seqs": 1}
    view = view_of(*old, *young, in_flight_s=0.5, **fields)
    policy = planner("annealing:max_age_s=30")
    assert sorted(search(policy, view) or ()) == ["fine", "late"]
    assert problem_of(policy, view).start_s == pytest.approx(0.5 + 4 * 1.01)
    thousands = [job(f"old{index:04}", tokens=101) for index in range(2000)]
    start_s = problem_of(policy, view_of(*thousands, *young, **fields)).start_s
    assert start_s == pytest.approx(2000 * 1.01)


def test_a_batch_fits_what_runs() -> None:
    jobs = [job(name) for name in "abc"]
    view = view_of(*jobs, running=[running("r"), running("s")], num_free_slots=2)
    held = sum(
        one.num_projected_tokens + one.expected_tokens_left for one in view.running
    )
    problem = problem_of(planner("annealing"), view)
    assert problem.exec_s.shape == (3, 2), "no larger than the free slots"
    pool = view.ledger.num_pages * view.ledger.page_size
    assert problem.max_kv_tokens == pool - held
    alone_s = problem_of(planner("annealing"), view_of(*jobs)).exec_s
    # Ten prompt tokens and nine decode steps, each longer for each row that runs.
    assert problem.exec_s[:, 0] == pytest.approx(3 * alone_s[:, 0])


def test_the_clock_ends_a_search() -> None:
    jobs = [job(f"j{index}", ttlt_s=0.2) for index in range(6)]
    for budget_s, num_looks in ((math.inf, 9), (1e9, 9), (2e-3, 4)):
        # A millisecond passes between two looks at the clock.
        looks = itertools.count(0.0, 1e-3)
        limit = SearchLimit(looks.__next__, budget_s)
        policy = planner("annealing:proposals=999", limit=limit)
        found = search(policy, view_of(*jobs))
        assert policy.searches.search_s == pytest.approx((num_looks - 1) * 1e-3)
        assert sorted(found or ()) == sorted(one.request_id for one in jobs)


def test_the_same_views_give_new_objects_the_same_plans() -> None:
    jobs = [job(f"j{index}", tokens=5 + index % 7, ttlt_s=0.4) for index in range(12)]
    view = view_of(*jobs)
    one, other = planner("annealing:proposals=500"), planner("annealing:proposals=500")
    for now_s in (0.0, 0.01, 0.2):
        view.queue.add(job(f"at{now_s}"))
        now = dataclasses.replace(view, now_s=now_s)
        plan = one.plan(now)
        assert len(admitted(plan)) == 8, "every row is taken"
        assert plan == other.plan(now)
    assert one.found == other.found
    assert one.searches.num_searches == other.searches.num_searches == 2
