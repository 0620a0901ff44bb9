"""The bound on age: what an endless flood of urgent requests cannot do."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jserve_sched.requests.request import Request
from jserve_sched.requests.slo import Slo
from jserve_sched.steps.plan import StepPlan, StepResult
from tests.fakes import STEP_S, Driver, make_request, make_scheduler

MAX_AGE_S = 0.3
MOST_LONG = 2  # of these wait at a time
MOST_SHORT = 3
LONGEST_STEPS = 5 + 16  # a long prompt in full steps, and its answer
SEARCHES = ":proposals=8"


def serve(
    policy: str, *, num_slots: int, num_pages: int, lag: int, seed: int, wrong_by: float
) -> list[tuple[Request, float]]:
    """Serves short urgent requests without end, and some long ones in no hurry.

    Predicted lengths are `wrong_by` off. Returns each request and how long it waited
    to be let in; one that waits still at the end has waited until then.
    """
    rng = np.random.default_rng(seed)
    scheduler = make_scheduler(
        policy=f"{policy}:max_age_s={MAX_AGE_S}",
        num_pages=num_pages,
        max_num_seqs=num_slots,
        enable_prefix_caching=False,
    )
    driver: Any = Driver(scheduler, lag=lag)
    driver.runner = Idle()
    requests: list[Request] = []

    def is_long(request: Request) -> bool:
        return request.slo.ttlt_s is not None

    for _ in range(400):
        waiting = scheduler.view(driver.now_s).waiting
        num_long = sum(map(is_long, waiting))
        new = [True] * (num_long < MOST_LONG and rng.random() < 0.1)
        new += [False] * (MOST_SHORT - (len(waiting) - num_long))
        for long in new:
            request = make_request(
                prompt=[1] * int(rng.integers(60, 72) if long else rng.integers(1, 6)),
                max_tokens=int(rng.integers(10, 17) if long else rng.integers(1, 4)),
                arrival_s=driver.now_s,
                slo=Slo(ttlt_s=30.0) if long else Slo(ttft_s=0.1, tbt_s=0.05),
            )
            scheduler.submit(request)
            request.predict(round(request.max_tokens * wrong_by))
            requests.append(request)
        driver.step()
    waits = []
    for one in requests:
        until_s = one.first_scheduled_s
        waits.append(
            (one, (driver.now_s if until_s is None else until_s) - one.arrival_s)
        )
    return waits


class Idle:
    """An engine that answers anything at once."""

    def run(self, plan: StepPlan) -> StepResult:
        num_tokens = sum(row.draws_token for row in (*plan.decodes, *plan.chunks))
        return StepResult(tokens=(0,) * num_tokens, duration_s=STEP_S)


@pytest.mark.parametrize(
    ("policy", "steps_between"),
    [
        (f"annealing{SEARCHES}", 0),
        # A turn comes after 16 steps, and each step of a prompt takes a turn.
        ("ontime", 16 * 5),
    ],
)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    num_slots=st.integers(1, 2),
    num_pages=st.integers(12, 20),
    lag=st.integers(0, 1),
    seed=st.integers(0, 2**31),
    wrong_by=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_the_bound_on_age_limits_every_wait(
    policy: str, steps_between: int, **flood: Any
) -> None:
    """Once over the bound, only earlier arrivals are admitted before it.

    At most `MOST_LONG + MOST_SHORT` waited when it came and `num_slots` ran, and each
    takes at most `LONGEST_STEPS` if it runs alone, and the steps between its turns.
    """
    waits = serve(policy, **flood)
    num_before = MOST_LONG + MOST_SHORT + flood["num_slots"]
    bound_s = MAX_AGE_S + num_before * (LONGEST_STEPS + steps_between) * STEP_S
    assert sum(request.slo.ttlt_s is not None for request, _ in waits) > 5
    assert max(wait_s for _, wait_s in waits) <= bound_s
