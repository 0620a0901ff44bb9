"""Times one plan with 32 requests running and 200 waiting, for each policy.

  python benchmarks/plan_time.py --output=out/plan_time.json

The scheduler is the real one, without an engine; a fake step gives every row a
token. A slot stays free, so that the waiting are ranked, but no KV page does, so that
nobody is admitted. The target is a median under 0.5 ms.
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
from jserve_sched.request import Request
from jserve_sched.scheduler import Scheduler
from jserve_sched.slo import Slo
from jserve_sched.table_predictor import TablePredictor

_OUTPUT = flags.DEFINE_string("output", "", "JSON file to write as well.")
_NUM_PLANS = flags.DEFINE_integer(
    "num_plans", 500, "Plans timed for each policy.", lower_bound=1
)

_NUM_RUNNING, _NUM_WAITING = 32, 200
_PAGE_SIZE = 128
_RUNNING_TOKENS = 900
_WAITING_TOKENS = 19_200  # more pages than are free
_MAX_TOKENS = 10_000  # nobody finishes while we look


def crowded_scheduler(policy: str, num_plans: int) -> Scheduler:
    """Returns a scheduler with 32 decoding requests and 200 waiting."""
    table = PowersOfTwo().table(
        max_num_seqs=_NUM_RUNNING + 1,
        max_num_batched_tokens=1024,
        block_tokens=32,
    )
    num_tokens = _RUNNING_TOKENS + 2 * _NUM_RUNNING + num_plans
    num_pages = _NUM_RUNNING * -(-num_tokens // _PAGE_SIZE)
    scheduler = Scheduler(
        policy=make_policy(policy),
        buckets=table,
        ledger=KvLedger(num_pages=num_pages, page_size=_PAGE_SIZE),
        predictor=TablePredictor(table, max_pages_per_row=256),
        max_num_seqs=_NUM_RUNNING + 1,
        max_num_batched_tokens=1024,
        max_model_len=32768,
    )
    rng = np.random.default_rng(0)

    def submit(count: int, num_prompt_tokens: int) -> None:
        for _ in range(count):
            scheduler.submit(
                Request(
                    request_id=f"{num_prompt_tokens}-{rng.integers(2**62)}",
                    arrival_s=float(rng.uniform(0, 100)),
                    prompt_tokens=rng.integers(0, 256, num_prompt_tokens),
                    max_tokens=_MAX_TOKENS,
                    slo=Slo(ttft_s=float(rng.uniform(1, 1000)), tbt_s=0.1),
                )
            )

    submit(_NUM_RUNNING, _RUNNING_TOKENS)
    while (plan := scheduler.plan(0.0)) and len(plan.decodes) < _NUM_RUNNING:
        scheduler.dispatch(plan, 0.0)
        scheduler.apply(StepResult(tokens=(1,) * plan.num_sampled, duration_s=0.01))
    submit(_NUM_WAITING, _WAITING_TOKENS)
    return scheduler


def time_plans(policy: str, num_plans: int) -> dict[str, float]:
    """Returns the time of a plan and of its dispatch, ms."""
    scheduler = crowded_scheduler(policy, num_plans)
    plan_s, dispatch_s = [], []
    for step in range(num_plans):
        start_s = time.perf_counter()
        plan = scheduler.plan(0.01 * step)
        planned_s = time.perf_counter()
        assert plan is not None
        scheduler.dispatch(plan, 0.01 * step)
        dispatch_s.append(time.perf_counter() - planned_s)
        plan_s.append(planned_s - start_s)
        assert len(plan.decodes) == _NUM_RUNNING
        assert scheduler.num_waiting == _NUM_WAITING
        scheduler.apply(StepResult(tokens=(1,) * plan.num_sampled, duration_s=0.01))
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
