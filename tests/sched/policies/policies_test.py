"""What the policies decide on hand-made snapshots."""

import numpy as np
import pytest

from jserve_sched.buckets.strategies import Continuous
from jserve_sched.buckets.table import BucketTable
from jserve_sched.planning.candidates import MAX_WAITING, Candidates
from jserve_sched.policies.registry import make_policy
from jserve_sched.requests.request import Request
from jserve_sched.requests.slo import Slo
from jserve_sched.steps.plan import StepPlan
from tests.fakes import Driver, begin, make_request, make_scheduler
from tests.step_costs import Curve, Staircase, make_view

CONTINUOUS = Continuous().table(
    max_num_seqs=64, max_num_batched_tokens=4160, block_tokens=1
)
PER_TOKEN_S = 1e-4


def decoding(slack_s: float, *, gap_s: float = 0.05) -> Request:
    """A running request whose next token is due `slack_s` after time 0."""
    request = begin(make_request(16, 8, slo=Slo(ttft_s=10.0, tbt_s=gap_s)))
    request.pacing = request.pacing._replace(start_s=slack_s - gap_s)
    return request


def plan_of(policy: str, *, table=CONTINUOUS, predictor=None, **view) -> StepPlan:
    predictor = predictor or Curve(lambda tokens: 0.001 + PER_TOKEN_S * tokens)
    plan = make_policy(policy).plan(make_view(table, predictor, **view))
    assert plan is not None
    return plan


def taken(plan: StepPlan) -> dict[str, int]:
    return {row.request.request_id: row.num_tokens for row in plan.chunks}


def waiting(name: str, tokens: int, ttft_s: float) -> Request:
    return make_request(tokens, 4, request_id=name, slo=Slo(ttft_s=ttft_s))


@pytest.mark.parametrize("policy", ["qoserve", "sliding", "sliding:constructor=off"])
@pytest.mark.parametrize("seed", range(10))
def test_the_chunk_never_breaks_a_safe_decode(policy: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    running = [decoding(float(s)) for s in rng.uniform(-0.05, 0.3, 12)]
    queue = [
        waiting(f"w{i}", int(rng.integers(1, 1500)), float(rng.uniform(0.01, 2)))
        for i in range(20)
    ]
    view = {"running": running, "waiting": queue}
    for table, predictor in (
        (CONTINUOUS, Curve(lambda tokens: 0.001 + PER_TOKEN_S * tokens)),
        (
            BucketTable((16,), (0, 1, 2, 4, 8, 16), 32),
            Staircase(lambda blocks: 0.002 + 0.01 * blocks),
        ),
    ):
        plan = plan_of(policy, table=table, predictor=predictor, **view)
        alone_s = float(predictor.predict(plan.features[None] * 0)[0])
        dues_s = [one.pace_s for one in running]
        safe = [due_s for due_s in dues_s if due_s >= alone_s]
        assert plan.predicted_s <= min(safe) + 1e-12
        assert len(plan.decodes) == len(running)


def test_a_selection_leaves_out_requests_that_can_wait() -> None:
    queue = [waiting("tight", 160, 0.0185), waiting("loose", 100, 30.0)]
    plan = plan_of("sliding:published=on", waiting=queue, running=[decoding(0.02)])
    assert list(taken(plan)) == ["tight"]


def test_one_tight_request_does_not_stop_all_prefill() -> None:
    queue = [waiting("a", 500, 1.0)]
    running = [decoding(5.0)]
    for tight_s in (0.0019, 0.0021, 0.0025, 0.01):
        plan = plan_of("sliding", waiting=queue, running=running, tight_ttft_s=tight_s)
        assert plan.chunks, tight_s


def test_qoserve_takes_the_largest_chunk_up_to_its_ceiling() -> None:
    queue = [waiting("a", 4000, 9.0)]
    assert taken(plan_of("qoserve", waiting=queue)) == {"a": 2500}
    plan = plan_of("qoserve", waiting=queue, running=[decoding(0.101)])
    assert taken(plan) == {"a": 1000}
    late = plan_of("qoserve", waiting=queue, running=[decoding(-1.0)])
    assert taken(late) == {"a": 2500}, "a late decode limits no chunk"


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ("alpha_s_per_token=0", ["long", "short", "late"]),
        ("alpha_s_per_token=0.008", ["short", "long", "late"]),
    ],
)
def test_qoserve_trades_deadline_against_work_and_relegates(options, order) -> None:
    queue = [
        waiting("late", 300, 0.02),
        waiting("long", 900, 1.0),
        waiting("short", 100, 2.0),
    ]
    assert list(taken(plan_of(f"qoserve:{options}", waiting=queue))) == order


def test_qoserve_relegates_no_request_for_its_pace_alone() -> None:
    both = Slo(ttft_s=1.5, ttlt_s=2.0)  # the first token is wanted after 1 s
    queue = [
        make_request(100, 4, request_id="behind", slo=both),
        waiting("later", 100, 1.9),
    ]
    plan = plan_of("qoserve:alpha_s_per_token=0", waiting=queue, now_s=1.2)
    assert list(taken(plan)) == ["behind", "later"]


def test_sliding_finishes_the_prompts_at_risk_as_in_figure_2() -> None:
    # Slacks 60, 80, 60 and 150 ms; 1 ms + 0.1 ms a token. All four take 96 ms.
    queue = [
        waiting("r1", 200, 0.060),
        waiting("r2", 350, 0.080),
        waiting("r3", 300, 0.060),
        waiting("r4", 100, 0.150),
    ]
    plan = plan_of("sliding:published=on", waiting=queue)
    assert taken(plan) == {"r1": 200, "r3": 300}
    assert plan.predicted_s <= 0.060
    filled = plan_of("sliding", waiting=queue)
    assert taken(filled)["r1"] == 200 and taken(filled)["r3"] == 300
    assert filled.predicted_s <= 0.060


def test_without_the_sorter_prompts_go_by_deadline() -> None:
    queue = [
        waiting("first", 900, 9.0),
        make_request(10, 4, request_id="soon", arrival_s=1.0, slo=Slo(ttft_s=2.0)),
    ]
    plan = plan_of("sliding:constructor=off:sorter=off", waiting=queue)
    assert list(taken(plan)) == ["soon", "first"]


def test_a_step_is_short_enough_for_the_next_arrival() -> None:
    queue = [waiting("a", 4000, 9.0)]
    running = [decoding(0.9, gap_s=0.9)]
    view = {"waiting": queue, "running": running, "tight_ttft_s": 0.052}
    plan = plan_of("sliding", **view)
    assert plan.predicted_s == pytest.approx(0.051, abs=2e-3)
    free = plan_of("sliding:published=on", **view)
    assert free.predicted_s > 0.3


@pytest.mark.parametrize("policy", ["fcfs", "edf", "sjf"])
def test_a_fixed_chunk_counts_the_decodes(policy: str) -> None:
    queue = [waiting("a", 900, 9.0)]
    running = [decoding(0.05), decoding(0.05)]
    plan = plan_of(f"{policy}:chunk_tokens=256", waiting=queue, running=running)
    assert taken(plan) == {"a": 254}


def test_of_a_long_queue_the_hopeful_and_the_guarded_are_ranked() -> None:
    late = [waiting(f"late{i}", 8, 1.0) for i in range(5 * MAX_WAITING)]
    hopeful = [waiting(f"ok{i}", 8 + i, 100.0 + i) for i in range(40)]
    guarded = make_request(99, 4, request_id="g", slo=Slo(ttft_s=0.5), guard=True)
    queue = [*late, *hopeful, guarded]
    view = make_view(CONTINUOUS, Curve(lambda t: t), waiting=queue, now_s=50.0)
    chosen = Candidates(view).prompts
    assert len(chosen) <= MAX_WAITING
    names = {one.request_id for one in chosen}
    assert {one.request_id for one in [*hopeful, guarded]} <= names


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sliding:speed=9", "policy 'sliding' has no option 'speed=9'"),
        ("sliding:alpha=high", "sliding:alpha=high is not a number"),
        ("sliding:published=maybe", "sliding:published=maybe is not one of"),
        ("edf:chunk_tokens=1.5", "chunk_tokens=1.5 is not a number"),
        ("edf:chunk_tokens=-1", "chunk_tokens=-1 is below 0"),
        ("sliding:alpha=nan", "sliding:alpha=nan is not a number"),
        ("sliding:alpha=-0.5", "alpha=-0.5 is not 0 or more"),
        ("ontime:max_age_s=nan", "max_age_s=nan is not a number"),
        ("qoserve:alpha_s_per_token=-1", "alpha_s_per_token=-1.0 is below 0"),
        ("qoserve:max_chunk_tokens=-7", "max_chunk_tokens=-7 is below 1"),
        ("annealing:proposals=0", "proposals=0 is below 1"),
        ("annealing:make_kernel=fast", "no option 'make_kernel=fast'"),
    ],
)
def test_wrong_specs_are_refused_by_name(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(spec)


def test_late_requests_lose_their_pages_first() -> None:
    scheduler = make_scheduler(policy="sliding", num_pages=12, page_size=8)
    driver = Driver(scheduler, lag=0)
    late = make_request(30, 40, slo=Slo(ttft_s=0.001, tbt_s=0.001))
    fine = make_request(30, 40, slo=Slo(ttft_s=100.0, tbt_s=100.0))
    scheduler.submit(late)
    scheduler.submit(fine)
    driver.run()
    assert (late.num_preemptions > 0, fine.num_preemptions) == (True, 0)
