"""Several engines: who gets a request, and what may be known when it comes."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from jserve_sched.routing import Dispatcher
from jserve_sched.simulation.engine import SimulatedEngine
from jserve_sched.simulation.instances import Routing
from jserve_sched.simulation.simulator import SimulationResult, simulate
from jserve_sched.simulation.workload import Arrival
from tests.fakes import check_integrity
from tests.step_costs import METRONOME, arrival, scheduler_of


def run_on(
    num_engines: int,
    arrivals: Sequence[Arrival],
    router: str = "round_robin",
    *,
    policy: str = "fcfs",
    routing: Any = None,
    **options: Any,
) -> SimulationResult:
    schedulers = [scheduler_of(policy) for _ in range(num_engines)]
    result = simulate(
        schedulers,
        METRONOME,
        arrivals,
        routing=routing or Routing(Dispatcher(router, num_engines)),
        records_steps=True,
        **options,
    )
    for one in schedulers:
        check_integrity(one)
    return result


class Watching:
    """Sends all to the first engine, and looks at it."""

    def __init__(self, look: Callable[[SimulatedEngine, float], None]):
        self.look = look

    def place_of(
        self, one: Arrival, engines: Sequence[SimulatedEngine], now_s: float
    ) -> int:
        self.look(engines[0], now_s)
        return 0


def test_no_snapshot_shows_a_step_before_it_ends() -> None:
    seen: list[list[int]] = []  # how many tokens each had had then

    def look(engine: SimulatedEngine, now_s: float) -> None:
        running = engine.scheduler.view(now_s).running
        seen.append([len(one.output_tokens) for one in running])

    # Steps end at whole seconds; "b" comes in the prefill, "c" in a long stretch of
    # decodes, "d" at the very end of one of them.
    arrivals = [
        arrival("a", 0.0, output=40),
        arrival("b", 0.5, output=2),
        arrival("c", 20.5, output=1),
        arrival("d", 30.0, output=1),
    ]
    result = run_on(2, arrivals, routing=Watching(look))
    assert seen == [[], [0], [20], [30]]
    assert result.outcomes[0].token_times_s == [float(k) for k in range(1, 41)]


@pytest.mark.parametrize("policy", ["fcfs", "sliding"])
@pytest.mark.parametrize("lag", [0, 1])
def test_each_engine_does_what_it_would_do_alone(policy: str, lag: int) -> None:
    arrivals = [
        arrival(str(k), 0.9 * k, prompt=4 + 5 * (k % 4), output=2 + 7 * (k % 3))
        for k in range(30)
    ]
    together = run_on(3, arrivals, policy=policy, lag=lag)
    for place, instance in enumerate(together.instances):
        mine = arrivals[place::3]
        alone = simulate(
            scheduler_of(policy), METRONOME, mine, lag=lag, records_steps=True
        )
        assert together.outcomes[place::3] == alone.outcomes
        assert instance.request_ids == [one.request_id for one in mine]
        assert instance.num_steps == alone.num_steps
        assert alone.steps is not None
        assert instance.busy_s == sum(one.duration_s for one in alone.steps)
    assert together.num_steps == sum(one.num_steps for one in together.instances)
    assert together.steps is not None
    starts_s = [one.start_s for one in together.steps]
    assert starts_s == sorted(starts_s) and len(starts_s) == together.num_steps


def test_a_slow_engine_takes_longer_and_gets_less() -> None:
    arrivals = [arrival(str(k), 0.5 * k, output=5) for k in range(40)]
    even = run_on(2, arrivals, speeds=(1.0, 0.25))
    fast, slow = even.instances
    assert len(fast.request_ids) == len(slow.request_ids) == 20
    assert slow.busy_s > 2 * fast.busy_s
    aware = run_on(2, arrivals, "slo", speeds=(1.0, 0.25))
    fast, slow = aware.instances
    assert len(fast.request_ids) > 1.5 * len(slow.request_ids) > 0


def test_old_snapshots_are_corrected() -> None:
    arrivals = [arrival(str(k), 0.01 * k, output=5) for k in range(12)]
    routing = Routing(Dispatcher("least_outstanding", 3), snapshot_age_s=60.0)
    result = run_on(3, arrivals, routing=routing)
    assert [len(one.request_ids) for one in result.instances] == [4, 4, 4]
