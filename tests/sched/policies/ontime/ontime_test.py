"""What `ontime` decides on hand-made snapshots, and in overload."""

import dataclasses

import numpy as np
import pytest

from jserve_sched.buckets.strategies import Continuous
from jserve_sched.buckets.table import BucketTable
from jserve_sched.planning.builder import PlanBuilder
from jserve_sched.policies.ontime import OnTime
from jserve_sched.policies.ontime.cap import StepCap
from jserve_sched.policies.ontime.due import decode_slack
from jserve_sched.policies.ontime.pages import too_large
from jserve_sched.requests.facts import facts_of
from jserve_sched.requests.request import Request, RequestState
from jserve_sched.requests.slo import Slo
from jserve_sched.steps.plan import StepPlan
from tests.fakes import make_request
from tests.step_costs import Curve, Staircase, make_view

CONTINUOUS = Continuous().table(
    max_num_seqs=64, max_num_batched_tokens=4160, block_tokens=1
)
LINE = Curve(lambda tokens: 0.001 + 1e-4 * tokens)


@pytest.fixture
def uncapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepCap, "find_s", lambda *arguments: np.inf)


def decoding(due_s: float, slo: Slo) -> Request:
    """A running request whose next token is due then; SLOs count from its arrival."""
    assert slo.ttft_s is not None
    request = make_request(16, 8, slo=slo, arrival_s=due_s - slo.ttft_s - 0.05)
    request.output_tokens.append(1)
    request.num_dispatched_tokens = 16
    request.slot, request.pages = 0, [0, 1]
    request.state = RequestState.RUNNING
    return request


def waiting(name: str, tokens: int, **bounds: float) -> Request:
    return make_request(tokens, 4, request_id=name, slo=Slo(**bounds))


def planned(policy: OnTime, table=CONTINUOUS, predictor=LINE, **view) -> StepPlan:
    plan = policy.plan(make_view(table, predictor, **view))
    assert plan is not None
    return plan


def taken(plan: StepPlan) -> dict[str, int]:
    return {row.request.request_id: row.num_tokens for row in plan.chunks}


@pytest.mark.usefixtures("uncapped")
def test_a_step_ends_by_the_due_time_of_the_prompt_that_it_finishes() -> None:
    queue = [waiting("tight", 100, ttft_s=0.02), waiting("long", 3000, ttft_s=9.0)]
    plan = planned(OnTime(), waiting=queue)
    assert taken(plan) == {"tight": 100, "long": 90}


@pytest.mark.usefixtures("uncapped")
@pytest.mark.parametrize(("weight", "place"), [(1.0, -1), (4.0, 0)])
def test_the_most_work_for_its_weight_is_given_up_and_comes_last(
    weight: float, place: int
) -> None:
    queue = [
        waiting("big", 900, ttft_s=0.11),
        *(waiting(f"w{i}", 300, ttft_s=0.12) for i in range(3)),
    ]
    queue[0].weight = weight
    assert list(taken(planned(OnTime(), waiting=queue)))[place] == "big"


def test_there_is_no_cap_where_fewer_are_given_up_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StepCap, "find_s", lambda *arguments: 0.02)
    table = BucketTable((16,), (0, 1, 2, 4, 8, 16), 32)
    stairs = Staircase(lambda blocks: 0.01 + 0.001 * blocks)
    running = [decoding(0.5, Slo(ttft_s=1.0, tbt_s=0.5))]
    for first_s, num_tokens in ((1.0, 256), (0.028, 512)):
        queue = [
            waiting(f"w{i}", 256, ttft_s=first_s + i / 1000, tbt_s=0.5)
            for i in range(2)
        ]
        plan = planned(OnTime(), table, stairs, running=running, waiting=queue)
        assert sum(taken(plan).values()) == num_tokens


@pytest.mark.usefixtures("uncapped")
def test_an_answer_with_a_completion_bound_takes_time_from_its_prompt() -> None:
    later = waiting("later", 100, ttft_s=1.0)
    bound = make_request(100, 40, request_id="bound", slo=Slo(ttlt_s=1.5))
    running = [decoding(0.05, Slo(ttft_s=1.0, tbt_s=0.02))]
    plan = planned(OnTime(), waiting=[later, bound], running=running)
    # 39 tokens, one each 20 ms, leave 0.72 s.
    assert list(taken(plan)) == ["bound", "later"]
    short = make_request(100, 4, request_id="short", slo=Slo(ttlt_s=1.5))
    plan = planned(OnTime(), waiting=[later, short], running=running)
    assert list(taken(plan)) == ["later", "short"]


def test_violated_decodes_wait_for_prompts_in_three_of_four_steps() -> None:
    slo = Slo(ttft_s=1.0, tbt_s=0.05)
    running = [decoding(-0.5, slo), decoding(0.5, slo)]
    queue = [waiting("a", 100, ttft_s=1.0)]
    policy, counts = OnTime(), []
    for step_id in range(8):
        one = make_view(CONTINUOUS, LINE, waiting=queue, running=running)
        plan = policy.plan(dataclasses.replace(one, step_id=step_id))
        assert plan is not None
        counts.append(len(plan.decodes))
    assert counts == [2, 1, 1, 1, 2, 1, 1, 1]


@pytest.mark.parametrize("seed", range(10))
def test_a_step_makes_no_decode_late_that_is_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    slo = Slo(ttft_s=1.0, tbt_s=0.05)
    running = [decoding(float(due_s), slo) for due_s in rng.uniform(-0.05, 0.3, 12)]
    queue = [
        waiting(f"w{i}", int(rng.integers(1, 1500)), ttft_s=float(rng.uniform(0.01, 2)))
        for i in range(20)
    ]
    table = BucketTable((16,), (0, 1, 2, 4, 8, 16), 32)
    stairs = Staircase(lambda blocks: 0.002 + 0.01 * blocks)
    for view in ((CONTINUOUS, LINE), (table, stairs)):
        plan = planned(OnTime(), *view, running=running, waiting=queue)
        safe_s = [one.deadline_s for one in running if one.deadline_s >= 0.002]
        assert plan.predicted_s <= min(safe_s) + 1e-12
        assert len(plan.decodes) == len(running)


def test_a_decode_that_costs_more_than_a_prompt_is_not_waited_for() -> None:
    one = decoding(0.5, Slo(ttft_s=1.0, ttlt_s=1.0))
    one.max_tokens = 21
    one.predict(21)  # 20 tokens in 0.45 s, one each 22.5 ms
    times = {"start_s": 0.0, "least_s": 0.02, "step_s": 0.04}
    # They need 20 - 0.45 / 0.04 = 8.75 steps more, of 20 ms: 0.175 s.
    for lost_per_s, num_waited in ((5.0, 1), (6.0, 0)):
        slack = decode_slack([one], lost_per_s=lost_per_s, **times)
        assert len(slack.slack_s) == num_waited


def test_the_set_finds_pages_in_time() -> None:
    ending = decoding(0.5, Slo(ttft_s=1.0, tbt_s=0.05))
    ending.pages = [0, 1, 2, 3]
    ending.predict(3)  # two more tokens
    prompts = facts_of(
        waiting(name, pages * 8, ttft_s=1.0) for name, pages in (("a", 3), ("b", 8))
    )
    for num_steps, decodes, gives_up in (
        ([1.0, 4.0], [ending], False),  # its pages are back by then
        ([1.0, 1.5], [ending], True),
        ([1.0, 4.0], [], True),
    ):
        view = make_view(CONTINUOUS, LINE, running=decodes)
        view.ledger.allocate(view.ledger.num_available - 10)
        found = too_large(
            view, prompts, np.array(num_steps), np.zeros(2, bool), np.ones(2)
        )
        assert found.tolist() == [False, gives_up]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_priced_is_what_is_placed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queue = [waiting(f"w{i}", int(rng.integers(1, 300)), ttft_s=9.0) for i in range(9)]
    view = make_view(CONTINUOUS, LINE, waiting=queue)
    view.ledger.allocate(view.ledger.num_available - int(rng.integers(1, 120)))
    builder = PlanBuilder(view)
    places = builder.places(queue)
    for one in queue:
        builder.add_prefill(one)
    plan = builder.build()
    chunks = plan.chunks if plan else ()
    assert [queue[place] for place in places] == [row.request for row in chunks]


@pytest.mark.parametrize("is_guessed", [False, True])
def test_prompts_of_guessed_answers_go_the_shortest_first(is_guessed: bool) -> None:
    long, short = waiting("long", 400, ttlt_s=9.0), waiting("short", 20, ttlt_s=9.1)
    for one in (long, short):
        one.stop_token_ids = frozenset({2} if is_guessed else ())
    plan = planned(OnTime(), waiting=[long, short])
    assert next(iter(taken(plan))) == ("short" if is_guessed else "long")
