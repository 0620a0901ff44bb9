"""The simulator: arithmetic by hand."""

import dataclasses
import itertools

import numpy as np
import pytest

from jserve_sched.buckets.strategies import PowersOfTwo
from jserve_sched.outcomes import Failure
from jserve_sched.requests.request import FinishReason, Request
from jserve_sched.requests.slo import Slo
from jserve_sched.simulation.cost_model import (
    CLOSED_FORMS,
)
from jserve_sched.simulation.disturbance import Disturbance
from jserve_sched.simulation.mixes import WORKLOADS
from jserve_sched.simulation.simulator import simulate
from jserve_sched.simulation.workload import (
    Arrival,
    at_rate,
    isolated_times,
    unit_arrivals,
)
from jserve_sched.steps import features
from tests.fakes import check_integrity
from tests.step_costs import METRONOME, arrival, scheduler_of

A100 = CLOSED_FORMS["a100-llama3-8b"]


@dataclasses.dataclass
class Watching:
    """Keeps the requests that a scheduler took in."""

    seen: list[Request] = dataclasses.field(default_factory=list)

    def estimate(self, request: Request) -> int:
        self.seen.append(request)
        return request.max_tokens

    def update(self, request: Request) -> bool:
        del request
        return False


LONG_AND_LATE = [arrival("a", 0.0, output=9), arrival("b", 1.5)]


@pytest.mark.parametrize(
    ("arrivals", "lag", "times_s"),
    [
        ([arrival("a", 5.0)], 0, [[6, 7, 8]]),
        # An idle server waits for the next arrival.
        ([arrival("a", 0.0, 8, 1), arrival("b", 100.0, 8, 1)], 0, [[1], [101]]),
        # "b" comes while the step from 1 s to 2 s runs; with overlap the step from 2 s
        # to 3 s is planned by then.
        (LONG_AND_LATE, 0, [[*range(1, 10)], [3, 4, 5]]),
        (LONG_AND_LATE, 1, [[*range(1, 10)], [4, 5, 6]]),
        # The truth, although it says that it takes less.
        (
            [dataclasses.replace(arrival("a", 0.0), declared_max_tokens=2)],
            0,
            [[1, 2, 3]],
        ),
    ],
)
def test_tokens_come_one_step_apart(
    arrivals: list[Arrival], lag: int, times_s: list[list[int]]
) -> None:
    result = simulate(scheduler_of(), METRONOME, arrivals, lag=lag)
    assert [one.token_times_s for one in result.outcomes] == times_s
    assert all(one.failure is None for one in result.outcomes)
    assert result.end_s == max(one[-1] for one in times_s)


def test_who_is_not_done_in_time_is_unfinished() -> None:
    # At most 2 x 60 s: "b" has had 119 tokens by then. "c" can never run.
    arrivals = [
        arrival("a", 0.0, output=10),
        arrival("b", 0.5, output=200),
        arrival("c", 0.6, prompt=700),
    ]
    result = simulate(scheduler_of(), METRONOME, arrivals, max_spans=2.0)
    failures = [None, Failure.UNFINISHED, Failure.TOO_LONG]
    assert [one.failure for one in result.outcomes] == failures
    assert len(result.outcomes[1].token_times_s) == 119
    assert result.end_s == 120.0


def test_a_hopeless_run_stops_at_once() -> None:
    slo = Slo(ttft_s=1.5)
    arrivals = [arrival(str(k), 0.1 * k, slo=slo, output=20) for k in range(100)]
    whole = simulate(scheduler_of(), METRONOME, arrivals)
    short = simulate(
        scheduler_of(),
        METRONOME,
        arrivals,
        stop_after_violations=5,
        num_uncounted=10,
    )
    late = [not one.is_attained for one in whole.outcomes]
    assert sum(late[10:]) > 6
    assert short.num_steps < whole.num_steps / 5
    assert sum(not one.is_attained for one in short.outcomes[10:]) > 5


def early(arrivals: list[Arrival]) -> list[Arrival]:
    """Every other request says that it takes nine tokens more than it takes."""
    return [
        dataclasses.replace(one, declared_max_tokens=(one.max_tokens + 9) * (k % 2))
        for k, one in enumerate(arrivals)
    ]


@pytest.mark.parametrize("lag", [0, 1])
def test_an_answer_may_end_before_its_declared_tokens(lag: int) -> None:
    watching = Watching()
    scheduler = scheduler_of(lengths=watching)
    arrivals = early([arrival(str(k), 2.0 * k, output=3 + k) for k in range(8)])
    result = simulate(scheduler, METRONOME, arrivals, lag=lag)
    assert [one.max_tokens for one in watching.seen] == [3, 13, 5, 15, 7, 17, 9, 19]
    reasons = [FinishReason.LENGTH, FinishReason.STOP] * 4
    assert [one.finish_reason for one in watching.seen] == reasons
    assert [len(one.token_times_s) for one in result.outcomes] == [*range(3, 11)]
    assert all(one.failure is None for one in result.outcomes)
    check_integrity(scheduler)


def test_noise_is_seeded_and_about_the_cost() -> None:
    def durations(noise: float, seed: int) -> np.ndarray:
        result = simulate(
            scheduler_of(),
            METRONOME,
            [arrival(str(k), 3.0 * k, output=5) for k in range(200)],
            records_steps=True,
            disturbance=Disturbance(noise=noise),
            seed=seed,
        )
        assert result.steps is not None
        return np.array([one.duration_s for one in result.steps])

    assert np.all(durations(0.0, 1) == 1.0)
    first = durations(0.2, 1)
    assert np.array_equal(first[:500], durations(0.2, 1)[:500])
    assert not np.array_equal(first[:500], durations(0.2, 2)[:500])
    assert abs(np.log(first).mean()) < 0.04
    assert np.log(first).std() == pytest.approx(0.2, rel=0.15)


def test_real_time_is_measured_by_the_clock_handed_in() -> None:
    result = simulate(
        scheduler_of(),
        METRONOME,
        [arrival("a", 0.0, output=1)],
        records_steps=True,
        clock=itertools.count(0.0, 1.0).__next__,
    )
    assert result.steps is not None
    assert [one.plan_s for one in result.steps] == [1.0]


@pytest.mark.parametrize(
    ("arrivals", "message"),
    [
        ([arrival("a", 1.0), arrival("b", 0.0)], "sorted"),
        ([arrival("a", 0.0), arrival("a", 0.0)], "same request_id"),
    ],
)
def test_bad_arrivals_are_refused(arrivals: list[Arrival], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(scheduler_of(), METRONOME, arrivals)


def test_a_prefix_cache_serves_the_turns_of_conversations() -> None:
    units = unit_arrivals(
        WORKLOADS["interactive_chat"],
        num_requests=60,
        seed=0,
        yardstick=isolated_times(A100, max_prompt_tokens=100),
    )
    table = PowersOfTwo().table(
        max_num_seqs=256, max_num_batched_tokens=2048, block_tokens=32
    )
    hits = []
    for caches in (True, False):
        scheduler = scheduler_of(
            cost_model=A100,
            table=table,
            max_model_len=40_960,
            enable_prefix_caching=caches,
        )
        result = simulate(scheduler, A100, at_rate(units, 2.0))
        hits.append(result.counters.prefix_hit_tokens)
    total = sum(one.num_prompt_tokens for one in units)
    assert hits[1] == 0 and 0.3 * total < hits[0] < 0.8 * total


def test_a_machine_drifts_slowly_and_sending_lengthens_steps_by_decode() -> None:
    disturbed = Disturbance(drift=0.2, send_s=0.5).drawn((3, 0))
    row = np.zeros(features.NUM_FEATURES)
    times_s = np.arange(0.0, 6000.0, 3.0)
    slowness = np.log([disturbed(1.0, row, now_s, 0) for now_s in times_s.tolist()])
    # Between two independent values a line has two thirds of their variance on average.
    assert slowness.std() == pytest.approx(0.2 * (2 / 3) ** 0.5, rel=0.15)
    assert np.abs(np.diff(slowness)).max() < 0.12  # a tenth of the largest change
    alone_s = disturbed(1.0, row, 0.0, 0)
    row[features.NUM_DECODES] = 4.0
    assert disturbed(1.0, row, 0.0, 0) == pytest.approx(alone_s + 4 * 0.5)


def test_a_request_lengthens_the_step_that_begins_after_it_came() -> None:
    result = simulate(
        scheduler_of(),
        METRONOME,
        [arrival("a", 0.0, output=4), arrival("b", 1.5), arrival("c", 1.6)],
        disturbance=Disturbance(receive_s=0.1),
        records_steps=True,
    )
    assert result.steps is not None
    found = [one.duration_s - 1.0 for one in result.steps[:4]]
    assert found == pytest.approx([0.1, 0.0, 0.2, 0.0])
