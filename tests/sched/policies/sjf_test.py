import random

import numpy as np

from jserve_sched.buckets.strategies import Continuous
from jserve_sched.policies.registry import make_policy
from jserve_sched.requests.request import Request
from jserve_sched.timing.request_latency import Bilinear, RequestLatency
from tests.fakes import begin, make_request
from tests.step_costs import Curve, make_view

SLOTS = 64
TABLE = Continuous().table(
    max_num_seqs=SLOTS, max_num_batched_tokens=8256, block_tokens=1
)
LATENCY = RequestLatency(
    prefill=Bilinear(both=1e-5, batch=2e-3, length=3e-5, base=4e-3),
    decode=Bilinear(both=2e-7, batch=3e-4, length=1e-6, base=5e-3),
)


def order_of(waiting: list[Request], running: list[Request] | None = None) -> list[str]:
    """Returns the order in which prompts are put into one large step."""
    view = make_view(
        TABLE,
        Curve(lambda tokens: tokens),
        waiting=waiting,
        running=running or [],
        latency=LATENCY,
    )
    plan = make_policy("sjf").plan(view)
    assert plan is not None and not plan.decodes
    return [row.request.request_id for row in plan.chunks]


def job(name: str, num_prompt_tokens: int, num_output_tokens: int) -> Request:
    made = make_request(num_prompt_tokens, 2000, request_id=name)
    made.predict(num_output_tokens)
    return made


def test_jobs_go_by_the_time_of_prompt_and_answer() -> None:
    chance = random.Random(0)
    jobs = [
        job(f"{k}", chance.randint(1, 200), chance.randint(1, 300)) for k in range(40)
    ]
    exec_s = LATENCY.exec_s(
        np.full(1, float(SLOTS)),
        np.array([float(one.num_prompt_tokens) for one in jobs]),
        np.array([float(one.predicted_output_tokens) for one in jobs]),
    )
    ranked = [jobs[place].request_id for place in np.argsort(exec_s).tolist()]
    assert order_of(jobs) == ranked


def test_what_is_computed_is_not_counted_again() -> None:
    begun = begin(job("begun", 500, 1), 480)
    fresh = job("fresh", 60, 1)
    assert order_of([fresh], [begun]) == ["begun", "fresh"]
    begun.num_dispatched_tokens = 100
    assert order_of([fresh], [begun]) == ["fresh", "begun"]
