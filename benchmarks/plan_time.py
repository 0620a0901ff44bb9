"""Times one plan with 32 requests running and 200 waiting, for each policy.

  python benchmarks/plan_time.py --output=out/plan_time.json

The scheduler is the real one, without an engine; a fake step gives every row a
token. The target is a median under 0.5 ms.
"""

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from jserve.program import run_program
from jserve_sched.buckets import PowersOfTwo
from jserve_sched.ledger import KvLedger
from jserve_sched.plan import StepResult
from jserve_sched.policies import POLICIES, make_policy
from jserve_sched.predictor import TablePredictor
from jserve_sched.request import Request
from jserve_sched.scheduler import Scheduler
from jserve_sched.slo import Slo

_OUTPUT = flags.DEFINE_string("output", "", "JSON file to write as well.")
_NUM_PLANS = flags.DEFINE_integer(
    "num_plans", 500, "Plans timed for each policy.", lower_bound=1
)

_NUM_RUNNING, _NUM_WAITING = 32, 200
_MAX_TOKENS = 10_000  # nobody finishes while we look


def crowded_scheduler(policy: str) -> Scheduler:
    """Returns a scheduler with 32 decoding requests and 200 waiting."""
    tokens = _NUM_RUNNING + 16 * 32
    table = PowersOfTwo().table(
        max_num_seqs=_NUM_RUNNING, max_num_batched_tokens=tokens, block_tokens=32
    )
    scheduler = Scheduler(
        policy=make_policy(policy),
        buckets=table,
        ledger=KvLedger(num_pages=1024, page_size=128),
        predictor=TablePredictor(table, max_pages_per_row=128),
        max_num_seqs=_NUM_RUNNING,
        max_num_batched_tokens=tokens,
        max_model_len=16384,
    )
    rng = np.random.default_rng(0)
    for index in range(_NUM_RUNNING + _NUM_WAITING):
        scheduler.submit(
            Request(
                request_id=str(index),
                arrival_s=float(index),
                prompt_tokens=rng.integers(0, 256, int(rng.integers(50, 1000))),
                max_tokens=_MAX_TOKENS,
                slo=Slo(ttft_s=float(rng.uniform(1, 1000)), tbt_s=0.1),
            )
        )
    return scheduler


def time_plans(policy: str, num_plans: int) -> dict[str, float]:
    """Returns the time of a plan and of its dispatch, ms."""
    scheduler = crowded_scheduler(policy)
    plan_s, dispatch_s = [], []
    now_s = 0.0
    while len(plan_s) < num_plans:
        start_s = time.perf_counter()
        plan = scheduler.plan(now_s)
        planned_s = time.perf_counter()
        assert plan is not None
        scheduler.dispatch(plan, now_s)
        end_s = time.perf_counter()
        if len(plan.decodes) == _NUM_RUNNING:
            plan_s.append(planned_s - start_s)
            dispatch_s.append(end_s - planned_s)
            assert scheduler.num_waiting == _NUM_WAITING
        scheduler.apply(StepResult(tokens=(1,) * plan.num_sampled, duration_s=0.01))
        now_s += 0.01
    return {
        "plan_p50_ms": 1e3 * statistics.median(plan_s),
        "plan_p99_ms": 1e3 * float(np.quantile(plan_s, 0.99)),
        "dispatch_p50_ms": 1e3 * statistics.median(dispatch_s),
    }


def main(argv: Sequence[str]) -> None:
    """Prints one JSON document, by policy."""
    del argv
    found = {
        policy: time_plans(policy, _NUM_PLANS.value) for policy in sorted(POLICIES)
    }
    text = json.dumps(
        {"num_running": _NUM_RUNNING, "num_waiting": _NUM_WAITING, "policies": found}
    )
    print(text)
    if _OUTPUT.value:
        path = pathlib.Path(_OUTPUT.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


if __name__ == "__main__":
    run_program(sys.modules[__name__])
