import dataclasses

import numpy as np
import pytest

from jserve_sched.buckets.strategies import Continuous
from jserve_sched.outcomes import summarise_run
from jserve_sched.planning.forecast import Forecaster
from jserve_sched.planning.queue_pass import QueuePass
from jserve_sched.policies.registry import POLICIES
from jserve_sched.requests.request import Request
from jserve_sched.requests.slo import Slo
from jserve_sched.scheduler import Scheduler
from jserve_sched.simulation.cost_model import CLOSED_FORMS, OraclePredictor
from jserve_sched.simulation.simulator import simulate
from jserve_sched.simulation.workload import Arrival
from tests.fakes import make_request
from tests.step_costs import scheduler_of

GPU = CLOSED_FORMS["a100-llama3-8b"]
TABLE = Continuous().table(
    max_num_seqs=256, max_num_batched_tokens=2048, block_tokens=1
)


def scheduler_on(policy: str = "fcfs", *, max_num_seqs: int = 256) -> Scheduler:
    machine = dataclasses.replace(GPU, max_num_seqs=max_num_seqs)
    predictor = OraclePredictor(GPU, 1)
    return scheduler_of(policy, machine, TABLE, predictor=predictor)


def arrivals(num: int, gap_s: float) -> list[Arrival]:
    rng = np.random.default_rng(0)
    tokens, answers = rng.integers(100, 1500, num), rng.integers(5, 60, num)
    return [
        Arrival(
            request_id=f"{i:03}",
            arrival_s=i * gap_s,
            num_prompt_tokens=int(tokens[i]),
            max_tokens=int(answers[i]),
            service_class=f"{i % 2}",
            slo=Slo(ttft_s=0.5 + 4 * (i % 2), tbt_s=0.2),
        )
        for i in range(num)
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_has_forecasts_that_are_close_in_overload(policy: str) -> None:
    policy += ":proposals=10" * (policy == "annealing")
    found = simulate(scheduler_on(policy), GPU, arrivals(120, 0.05))
    run = summarise_run(found.outcomes)
    for name in ("0", "1"):
        forecast = run["by_class"][name]["ttft_forecast"]
        assert forecast["num_requests"] == 60
        assert forecast["median_error"] < 1.0
        assert 0.0 < forecast["share_under_p50"] <= forecast["share_under_p90"]


@pytest.mark.parametrize("max_num_seqs", [256, 3])
def test_what_waits_for_prefill_or_a_slot_is_foreseen(max_num_seqs: int) -> None:
    scheduler = scheduler_on(max_num_seqs=max_num_seqs)
    found = simulate(scheduler, GPU, arrivals(40, 0.0))
    errors = [
        one.forecast_ttft_s[0] / one.ttft_s - 1
        for one in found.outcomes[1:]
        if one.ttft_s and one.forecast_ttft_s
    ]
    assert len(errors) == 39
    assert abs(np.median(errors)) < 0.2


class OneSecond(QueuePass):
    def __init__(self) -> None:
        self.now_s = 0.0

    def points(self, request: Request) -> tuple[float, float, float]:
        return 1.0, 0.0, 1.0


def test_quantiles_hold_whatever_the_bias_and_its_drift() -> None:
    rng, forecaster, below = np.random.default_rng(1), Forecaster(), []
    for i in range(600):
        request = make_request(9, 1)
        request.forecast = forecaster.of(request, OneSecond())
        actual_s = (0.5 + i / 1000) * rng.lognormal(sigma=0.5)
        below.append([actual_s <= bound_s for bound_s in request.forecast.ttft_s])
        forecaster.enter(request)
        forecaster.learn([(request, None)], actual_s)
    assert np.mean(below[100:], axis=0) == pytest.approx([0.5, 0.9], abs=0.05)


def test_when_it_could_be_attained() -> None:
    scheduler = scheduler_on()
    slo = Slo(ttft_s=0.3)
    now = scheduler.forecast(make_request(500, slo=slo), 0.0)
    assert now.attainable_in_s == 0.0
    for _ in range(20):
        scheduler.submit(make_request(1500, 2))
    late = scheduler.forecast(make_request(500, slo=slo), 0.0)
    assert late.chance < 0.1
    assert late.attainable_in_s == pytest.approx(late.ttft_s[0] - 0.3)
    never = scheduler.forecast(make_request(9000, slo=slo), 0.0)
    assert never.attainable_in_s is None
    assert scheduler.num_waiting == 20, "nothing was submitted"


def test_slots_that_one_step_fills_are_waited_for() -> None:
    scheduler = scheduler_on(max_num_seqs=4)
    requests = [make_request(20, 100) for _ in range(40)]
    for one in requests:
        scheduler.submit(one)
    points = [scheduler.forecast(one, 0.0).points for one in requests]
    # Ten batches of four: the last begins when nine have ended.
    assert max(points)[0] > 8 * min(points)[2]
