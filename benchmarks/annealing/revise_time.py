"""Times the searches of a server: its policy, its budget, a long queue.

The one idea: what a step waits for is `PlannedAdmission.revise`, and that searches no
more than a window of the queue. So the server's own policy is asked, as the server
makes it, and the time is that of the whole call: requests chosen, tables, search.
"""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

from jserve.config import EngineConfig
from jserve.planning import serving_policy
from jserve_sched.bucket_strategies import PowersOfTwo
from jserve_sched.cost_model import CLOSED_FORMS, OraclePredictor
from jserve_sched.outlook import Outlook
from jserve_sched.policies import PlannedAdmission
from jserve_sched.request import Request
from jserve_sched.simulator import make_scheduler

_MACHINE = CLOSED_FORMS["a100-llama3-8b"]
_MAX_MODEL_LEN = 8192
_APART_S = 0.1  # longer than the policy lets pass between two searches


def time_revisions(
    requests: Sequence[Request], *, max_num_seqs: int, budget_ms: float, num_times: int
) -> dict[str, Any]:
    """Returns what searches took with all these waiting and every slot free.

    Args:
      requests: those that wait.
      max_num_seqs: slots.
      budget_ms: most that a search should take.
      num_times: searches timed, each of which starts from the one before.
    """
    config = EngineConfig(
        policy="annealing",
        annealing_budget_ms=budget_ms,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=_MACHINE.max_num_batched_tokens,
    )
    policy = serving_policy(config)
    assert isinstance(policy, PlannedAdmission)
    machine = dataclasses.replace(_MACHINE, max_num_seqs=max_num_seqs)
    table = PowersOfTwo().table(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=machine.max_num_batched_tokens,
        block_tokens=config.block_tokens,
    )
    scheduler = make_scheduler(
        policy=policy,
        cost_model=machine,
        buckets=table,
        predictor=OraclePredictor(machine, config.block_tokens),
        max_model_len=_MAX_MODEL_LEN,
    )
    for request in requests:
        scheduler.submit(request)
    outlook: Outlook | None = None
    times_s, proposals = [], []
    for index in range(num_times + 1):
        view = dataclasses.replace(
            scheduler.view(index * _APART_S), outlook=outlook, epoch=index
        )
        start_s = time.perf_counter()
        outlook = policy.revise(view)
        times_s.append(time.perf_counter() - start_s)
        assert outlook is not None
        proposals.append(outlook.num_proposals)
    # The first one has the request latency fitted, which few others have.
    return {
        "num_waiting": len(requests),
        "max_num_seqs": max_num_seqs,
        "window": policy.window,
        "budget_ms": budget_ms,
        "p50_ms": round(1e3 * statistics.median(times_s[1:]), 3),
        "max_ms": round(1e3 * max(times_s[1:]), 3),
        "num_proposals": round(statistics.mean(proposals[1:])),
    }
