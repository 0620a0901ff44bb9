"""Routers, by snapshots that are given, and by those of real schedulers."""

import math
from typing import Any

import pytest

from jserve_sched.requests.slo import Slo
from jserve_sched.routing import ROUTERS, Dispatcher, Newcomer, ReplicaLoad, load_of
from jserve_sched.routing.routers import Router
from tests.fakes import Driver, make_request, make_scheduler


def a_load(**changes: Any) -> ReplicaLoad:
    """An idle replica, whose steps take 10 ms without prefill and 20 with it."""
    values: dict[str, Any] = {
        **{"made_s": 0.0, "rooms_s": (), "works_s": (), "ends_s": ()},
        **{"step_s": 0.02, "least_s": 0.01, "token_s": 1e-4, "in_flight_s": 0.0},
        **{"num_running": 0, "num_waiting": 0, "num_free_slots": 8},
        **{"num_free_pages": 100, "page_tokens": 16, "prefill_tokens": 0},
    }
    return ReplicaLoad(**values | changes)


def a_newcomer(num_tokens: int = 1000, ttft_s: float = 1.0, **more: Any) -> Newcomer:
    return Newcomer(0.0, num_tokens, 10, Slo(ttft_s=ttft_s), **more)


def test_a_newcomer_gains_one_only_where_it_disturbs_nobody() -> None:
    idle = a_load()
    assert idle.gain(a_newcomer(), 0.0) == 1
    assert idle.gain(a_newcomer(ttft_s=0.15), 0.0) == 0, "late even alone"
    assert idle.gain(a_newcomer(ttft_s=0.15), 0.0, num_cached=900) == 1
    # Half of the time is left for prefill: 0.2 s of work need 0.4 s.
    tight = a_load(rooms_s=(0.15,), works_s=(0.1,))
    assert tight.gain(a_newcomer(ttft_s=0.41), 0.0) == 1, "behind the other one"
    assert tight.gain(a_newcomer(ttft_s=0.25), 0.0) == 0, "one of both is late"
    crowd = a_load(rooms_s=(0.1, 0.13, 0.2), works_s=(0.02, 0.1, 0.02))
    assert crowd.num_lost == 0
    assert crowd.gain(a_newcomer(200, ttft_s=0.2), 0.0) == 0
    without = Newcomer(0.0, 1000, 10)
    assert crowd.gain(without, 0.0) == 1, "it can wait"


def test_slots_and_pages_make_a_newcomer_wait() -> None:
    full = a_load(num_free_slots=0, num_running=8, ends_s=(0.5, 0.9))
    assert full.room_s(a_newcomer(), 0.0) == pytest.approx(0.25)
    queue = a_load(num_free_slots=0, num_waiting=1, ends_s=(0.5, 0.9))
    assert queue.room_s(a_newcomer(), 0.0) == pytest.approx(0.05)
    no_pages = a_load(num_free_pages=3, ends_s=(0.5,), num_running=1)
    assert no_pages.room_s(a_newcomer(), 0.0) == pytest.approx(0.25)
    assert full.room_s(Newcomer(0.0, 10, 10), 0.0) == math.inf
    last = Newcomer(0.0, 1000, 11, Slo(ttlt_s=1.0))
    assert a_load().room_s(last, 0.0) == pytest.approx(0.4), "the answer takes 0.2 s"


@pytest.mark.parametrize(
    ("router", "place"),
    [
        ("round_robin", 0),
        ("least_outstanding", 2),
        ("lmetric", 1),
        ("slo", 3),
    ],
)
def test_what_each_router_looks_at(router: str, place: int) -> None:
    loads = [
        a_load(num_running=4, rooms_s=(0.5,), works_s=(0.3,), prefill_tokens=3000),
        a_load(num_running=3, step_s=0.08, least_s=0.075),
        a_load(num_running=2, rooms_s=(0.7,), works_s=(0.4,), prefill_tokens=4000),
        a_load(num_running=5, prefill_tokens=10),
    ]
    chosen = Router(ROUTERS[router]).choose(a_newcomer(ttft_s=0.9), loads, 0.0)
    assert chosen == place


def test_equals_get_requests_in_turn() -> None:
    for rule in ROUTERS.values():
        router, loads = Router(rule), [a_load()] * 3
        places = [router.choose(a_newcomer(), loads, 0.0) for _ in range(6)]
        assert places == [0, 1, 2, 0, 1, 2]


def test_a_prefix_goes_where_it_was_unless_that_replica_is_crowded() -> None:
    router = Router(ROUTERS["prefix"])
    loads = [a_load(), a_load()]
    known = a_newcomer(prefix=(b"a", b"b"))
    assert router.choose(known, loads, 0.0) == 0
    assert router.choose(a_newcomer(prefix=(b"x",)), loads, 0.0) == 1
    longer = a_newcomer(prefix=(b"a", b"b", b"c"))
    assert router.choose(longer, loads, 0.0) == 0
    crowded = [a_load(num_running=9), a_load(num_running=3)]
    assert router.choose(longer, crowded, 0.0) == 1


def test_it_is_refused_only_where_its_class_asks_for_that() -> None:
    hopeless = a_newcomer(ttft_s=0.01)
    router, loads = Router(ROUTERS["slo"]), [a_load(), a_load()]
    assert router.choose(hopeless, loads, 0.0) == 0
    assert router.choose(hopeless._replace(can_be_refused=True), loads, 0.0) is None
    lucky = a_newcomer(can_be_refused=True)
    assert router.choose(lucky, loads, 0.0) is not None


def test_among_many_two_are_looked_at() -> None:
    loads = [a_load(num_running=place % 7) for place in range(40)]
    router = Router(ROUTERS["least_outstanding"])
    chosen = [router.choose(a_newcomer(), loads, 0.0) for _ in range(300)]
    busy = [loads[one].num_running for one in chosen if one is not None]
    assert len(set(chosen)) > 30 and sum(busy) / len(busy) < 2.2  # 3 at random


def test_a_snapshot_is_corrected_by_what_was_sent_since() -> None:
    dispatcher = Dispatcher("least_outstanding", 2)
    loads = [a_load(num_running=3), a_load()]
    places = [dispatcher.route(a_newcomer(), loads, 0.1) for _ in range(4)]
    assert places == [1, 1, 1, 0]
    new = [a_load(num_running=4, made_s=0.2), a_load(num_running=3, made_s=0.2)]
    assert dispatcher.route(a_newcomer(), new, 0.3) == 1
    with pytest.raises(ValueError, match="router 'best' is not one of round_robin"):
        Dispatcher("best", 2)


def test_a_scheduler_tells_what_waits_and_runs() -> None:
    scheduler = make_scheduler(policy="ontime", num_pages=64, max_num_seqs=4)
    idle = load_of(scheduler.view(0.0))
    assert (idle.num_requests, idle.prefill_tokens, idle.num_free_slots) == (0, 0, 4)
    for _ in range(6):
        scheduler.submit(make_request(20, 9, arrival_s=0.0, slo=Slo(ttft_s=5.0)))
    before = load_of(scheduler.view(0.0))
    assert (before.num_waiting, before.prefill_tokens) == (6, 120)
    assert len(before.rooms_s) == len(before.works_s) == 6 and before.num_lost == 0
    assert before.gain(Newcomer(0.0, 20, 9, Slo(ttft_s=5.0)), 0.0) == 1
    assert before.gain(Newcomer(0.0, 20, 9, Slo(ttft_s=1e-6)), 0.0) == 0
    driver = Driver(scheduler)
    driver.step()
    after = load_of(scheduler.view(driver.now_s))
    assert after.num_running > 0 and after.prefill_tokens < 120
    assert len(after.ends_s) == after.num_running
