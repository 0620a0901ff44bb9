"""What becomes of requests that cannot be attained, by the rule of their class."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from jserve_sched.admission import Admission, ReturnTimes
from jserve_sched.buckets.strategies import PowersOfTwo
from jserve_sched.outcomes import Failure, summarise_outcomes
from jserve_sched.policies.sliding.sorter import surplus
from jserve_sched.requests.request import FinishReason
from jserve_sched.requests.slo import Slo
from jserve_sched.simulation.cost_model import CLOSED_FORMS
from jserve_sched.simulation.mixes import WORKLOADS
from jserve_sched.simulation.simulator import simulate
from jserve_sched.simulation.workload import at_rate, isolated_times, unit_arrivals
from tests.fakes import SMALL_TABLE, begin, make_request, make_scheduler
from tests.step_costs import Staircase, make_view, scheduler_of

A100 = CLOSED_FORMS["a100-llama3-8b"]
SIZES = {
    "max_num_seqs": A100.max_num_seqs,
    "max_num_batched_tokens": A100.max_num_batched_tokens,
    "block_tokens": 32,
}


def prompt(ttft_s: float, **fields):
    """A prompt of one full step of a second."""
    return make_request(16, 1, slo=Slo(ttft_s=ttft_s), **fields)


def review(*waiting, now_s=0.0, least_s=0.0):
    view = make_view(
        SMALL_TABLE,
        Staircase(lambda blocks: least_s + blocks / 4),
        running=[begin(make_request(max_tokens=9))],
        waiting=waiting,
        now_s=now_s,
    )
    return Admission().review(view)


def test_what_finds_no_room_is_held_while_there_is_hope() -> None:
    hopeful = [prompt(2.6, admission="refuse") for _ in range(3)]
    found = review(*hopeful)
    assert len(found.held) == 1 and not found.ended
    first, second = (prompt(1.6, admission="refuse") for _ in range(2))
    (ended,) = review(first, second).ended
    assert ended[1] is FinishReason.REFUSED
    assert first.is_committed + second.is_committed == 1


def test_what_is_committed_is_kept_and_others_make_room() -> None:
    kept, new = prompt(1.6, admission="refuse"), prompt(1.1, admission="refuse")
    kept.is_committed = True
    assert [one for one, _, _ in review(kept, new).ended] == [new]
    slack_s, work_s = np.array([1.0, 2.0]), np.array([1.0, 1.5])
    assert surplus(slack_s, work_s).tolist() == [False, True]
    assert surplus(slack_s, work_s, np.array([False, True])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("fields", "fate"),
    [
        ({"admission": "refuse"}, FinishReason.REFUSED),
        ({"admission": "degrade"}, "degraded"),
        ({}, None),
        ({"max_queue_wait_s": 5.0}, None),
        ({"max_queue_wait_s": 1.0}, FinishReason.EXPIRED),
    ],
)
def test_what_can_not_be_attained_ends_by_its_rule(fields, fate) -> None:
    one = prompt(2.5, **fields)
    found = review(one, make_request(8, 1, max_queue_wait_s=1.0), now_s=2.0)
    assert not any(math.isinf(work_s) for _, _, work_s in found.ended)
    (ended,) = review(prompt(0.9, admission="refuse")).ended
    assert ended[2] == math.inf  # late even alone
    assert [reason for _, reason, _ in found.ended] == [fate] * (
        fate not in (None, "degraded")
    )
    assert found.degraded == [one] * (fate == "degraded") and not found.held


def test_an_answer_of_unknown_length_is_taken_to_be_short() -> None:
    asked: dict[str, Any] = {
        "max_tokens": 2048,
        "stop_token_ids": frozenset({1}),
        "slo": Slo(ttlt_s=9),
    }
    one = make_request(16, admission="refuse", **asked)
    assert not review(one, least_s=0.1).held


def test_returns_are_spread_as_room_is_expected() -> None:
    returns = ReturnTimes()
    for place in range(10):
        returns.begin(place * 0.1)
    waits_s = [returns.next_s(1.0) for _ in range(1000)]
    assert np.diff(waits_s[:100]) == pytest.approx([1.0] * 99)
    assert max(waits_s) <= 300.0
    # As fast as prompts like it could be computed, even if few came lately.
    quick_s = [returns.next_s(400.0, work_s=0.01) for _ in range(10)]
    assert np.diff(quick_s) == pytest.approx([0.1] * 9)
    # After an overload of 4 s, which may last; and never where that would not help.
    assert returns.next_s(404.0, work_s=0.01) == pytest.approx(8.1)
    assert returns.next_s(404.0, work_s=math.inf) == math.inf


def test_one_begins_where_all_have_been_refused_for_long() -> None:
    # A prediction that is wrong by accident would else never be corrected.
    scheduler = make_scheduler()
    num_left = []
    for now_s in (10.0, 12.0, 16.0):
        scheduler.submit(prompt(1.0, admission="refuse", arrival_s=now_s - 9.0))
        scheduler.review(now_s)
        num_left.append(scheduler.num_waiting)
    assert num_left == [0, 0, 1]


@pytest.mark.parametrize("rule", ["refuse", "degrade"])
def test_in_overload_those_committed_attain_their_slo(rule) -> None:
    yardstick = isolated_times(A100, max_prompt_tokens=4096)
    units = unit_arrivals(
        WORKLOADS["chat"], num_requests=150, seed=0, yardstick=yardstick
    )
    arrivals = [
        dataclasses.replace(one, admission=rule) for one in at_rate(units, 80.0)
    ]
    scheduler = scheduler_of("ontime", A100, PowersOfTwo().table(**SIZES))
    outcomes = simulate(scheduler, A100, arrivals, max_returns=1).outcomes
    found = summarise_outcomes(outcomes)
    assert found["attainment_committed"] > 0.97
    others = [one for one in outcomes if not one.is_committed]
    assert others
    if rule == "degrade":
        assert len(others) == found["num_degraded"]
        assert all(one.failure is None and not one.is_attained for one in others)
    else:
        assert all(one.failure is Failure.REJECTED for one in others)
        assert found["num_returned"] > len(others)
        returned = next(one for one in outcomes if one.num_returns)
        assert returned.arrival_s not in [one.arrival_s for one in arrivals]
