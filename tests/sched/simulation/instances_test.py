"""Several engines: who gets a request, and what may be known when it comes."""

from collections.abc import Sequence

import pytest

from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.request import Request
from jserve_sched.scheduler import Scheduler
from jserve_sched.simulation.instances import (
    ASSIGNMENTS,
    Assignment,
    uncommitted_pages,
    work_s,
)
from jserve_sched.simulation.simulator import SimulationResult, simulate
from jserve_sched.simulation.workload import Arrival
from jserve_sched.steps.plan import StepResult
from jserve_sched.timing.request_latency import Bilinear, RequestLatency
from tests.fakes import check_integrity, make_request
from tests.step_costs import METRONOME, FixedLatency, arrival, scheduler_of

# A prompt token takes a second, whatever is beside it, and a decode step two.
LATENCY = RequestLatency(
    prefill=Bilinear(both=0.0, batch=0.0, length=1.0, base=0.0),
    decode=Bilinear(both=0.0, batch=0.0, length=0.0, base=2.0),
)


class Halves:
    """Expects half of what a request may take."""

    def estimate(self, request: Request) -> int:
        return request.max_tokens // 2

    def update(self, request: Request) -> None:
        del request


def halving_scheduler() -> Scheduler:
    scheduler = scheduler_of(lengths=Halves(), max_model_len=512)
    scheduler._latencies = FixedLatency(LATENCY)
    return scheduler


def submit(scheduler: Scheduler, name: str, prompt: int, most: int) -> None:
    scheduler.submit(
        make_request(prompt=[7] * prompt, max_tokens=most, request_id=name)
    )


def step(scheduler: Scheduler) -> None:
    plan = scheduler.plan(0.0)
    assert plan is not None
    scheduler.dispatch(plan, 0.0)
    scheduler.apply(StepResult(tokens=(0,) * plan.num_sampled, duration_s=1.0))


def test_the_measures_by_hand() -> None:
    scheduler = halving_scheduler()
    assert uncommitted_pages(scheduler.view(0.0)) == 80
    assert work_s(scheduler.view(0.0)) == 0.0
    # 8 prompt tokens and 10 expected of 20: three pages of 8; 8 s and nine steps. Four
    # slots share them.
    submit(scheduler, "a", 8, 20)
    assert uncommitted_pages(scheduler.view(0.0)) == 77
    assert work_s(scheduler.view(0.0)) == (8.0 + 18.0) / 4
    submit(scheduler, "b", 4, 8)
    assert uncommitted_pages(scheduler.view(0.0)) == 76
    assert work_s(scheduler.view(0.0)) == (8.0 + 18.0 + 4.0 + 6.0) / 4
    # Both prompts fit one step. The pages they hold were counted before.
    step(scheduler)
    assert [one.num_remaining_tokens for one in scheduler.view(0.0).running] == [1, 1]
    assert uncommitted_pages(scheduler.view(0.0)) == 76
    assert work_s(scheduler.view(0.0)) == (18.0 + 6.0) / 4
    # A step in flight is taken in full, and its tokens as done.
    plan = scheduler.plan(0.0)
    assert plan is not None
    scheduler.dispatch(plan, 0.0)
    view = scheduler.view(0.0)
    assert view.in_flight_s == 1.0
    assert work_s(view) == 1.0 + (16.0 + 4.0) / 4


def test_a_request_takes_as_long_as_in_a_batch_of_those_who_can_run() -> None:
    scheduler = scheduler_of()
    by_batch = RequestLatency(
        prefill=Bilinear(both=0.0, batch=1.0, length=0.0, base=0.0),
        decode=Bilinear(both=0.0, batch=1.0, length=0.0, base=0.0),
    )
    scheduler._latencies = FixedLatency(by_batch)
    view = scheduler.view(0.0)
    for number, name in enumerate("abcdef", 1):
        submit(scheduler, name, 4, 3)
        batch = min(number, 4)  # slots
        assert work_s(view) == number * (batch + 2 * batch) / 4


def test_each_goes_by_its_measure() -> None:
    schedulers = [halving_scheduler() for _ in range(3)]
    views = [one.view(0.0) for one in schedulers]
    kv, finish = (ASSIGNMENTS[one] for one in ("kv", "finish"))
    assert kv(views) == finish(views) == 0
    submit(schedulers[0], "one", 60, 2)  # 61 and 61 tokens, 60 s each
    submit(schedulers[0], "two", 60, 2)
    submit(schedulers[1], "answer", 4, 152)  # 80 tokens, 154 s
    submit(schedulers[2], "prompt", 90, 8)  # 94 tokens, 96 s
    views = [one.view(0.0) for one in schedulers]
    assert (kv(views), finish(views)) == (1, 2)


def run_on(
    num_engines: int,
    arrivals: Sequence[Arrival],
    assignment: Assignment,
    *,
    policy: str = "fcfs",
    lag: int = 0,
) -> SimulationResult:
    schedulers = [scheduler_of(policy) for _ in range(num_engines)]
    result = simulate(
        schedulers,
        METRONOME,
        arrivals,
        assignment=assignment,
        lag=lag,
        records_steps=True,
    )
    for one in schedulers:
        check_integrity(one)
    return result


def test_no_snapshot_shows_a_step_before_it_ends() -> None:
    seen: list[list[int]] = []  # how many tokens each had had then

    def watching(views: Sequence[SchedulerView]) -> int:
        seen.append([len(one.output_tokens) for one in views[0].running])
        return 0

    # Steps end at whole seconds; "b" comes in the prefill, "c" in a long stretch of
    # decodes, "d" at the very end of one of them.
    arrivals = [
        arrival("a", 0.0, output=40),
        arrival("b", 0.5, output=2),
        arrival("c", 20.5, output=1),
        arrival("d", 30.0, output=1),
    ]
    result = run_on(2, arrivals, watching)
    assert seen == [[], [0], [20], [30]]
    assert result.outcomes[0].token_times_s == [float(k) for k in range(1, 41)]


@pytest.mark.parametrize("policy", ["fcfs", "sliding"])
@pytest.mark.parametrize("lag", [0, 1])
def test_each_engine_does_what_it_would_do_alone(policy: str, lag: int) -> None:
    arrivals = [
        arrival(str(k), 0.9 * k, prompt=4 + 5 * (k % 4), output=2 + 7 * (k % 3))
        for k in range(30)
    ]
    together = run_on(3, arrivals, ASSIGNMENTS["round_robin"], policy=policy, lag=lag)
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
