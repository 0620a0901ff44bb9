"""A second reading of waiting, ours: requests stream through an engine one by one.

The one idea: an engine that batches continuously has always something to do, so a
request keeps it busy for its prefill and for its share of the decode steps, whoever
runs beside it, and the next one in turn can be let in that much later. An order is all
there is to plan: it is searched as jobs in batches of one, each as long as it keeps the
engine busy; what its own answer takes beyond that is added to what it has waited.

Shapes: `N` jobs.
"""

import math
from collections.abc import Sequence

import numpy as np

from jserve_sched.annealing_problem import (
    AnnealingProblem,
    TpotRule,
    promises,
    whole_ns,
)
from jserve_sched.request import Request
from jserve_sched.request_latency import RequestLatency

_MOST_S = 1e6  # of any time here, so that no sum can overflow
_MOST_JOBS_S = 2e9  # of all of them


def make_stream_problem(
    requests: Sequence[Request],
    latency: RequestLatency,
    *,
    now_s: float,
    num_together: int,
    max_kv_tokens: int,
    start_s: float = 0.0,
    tpot: TpotRule = "anchored",
) -> AnnealingProblem:
    """Returns the problem of these waiting requests, in their order.

    As many run together as may, as the KV pool holds, and as there are. Decode steps
    are stretched by what the prefills take in between, on average over all requests.

    Args:
      requests: at least one.
      latency: how long a request takes alone and in company.
      now_s: clock seconds.
      num_together: most requests that can run at once, 1 or more.
      max_kv_tokens: the KV pool.
      start_s: when the first can start, seconds from now.
      tpot: see `annealing_problem.make_problem`.

    Raises:
      ValueError: without requests, or if `num_together` is below 1.
    """
    if not requests or num_together < 1:
        raise ValueError(
            f"{len(requests)} requests, num_together={num_together}: both >= 1"
        )
    known, left, waited_s, first_s, last_s, mean_s = promises(requests, now_s, tpot)
    in_pool = int(max_kv_tokens / float(np.mean(known + left)))
    together = max(min(num_together, in_pool), 1)
    prefill_s = latency.prefill_s(np.array(1.0), known)
    decode_s = latency.decode_s(np.array(float(together)), known, left)
    busy_s = prefill_s + decode_s / together
    all_decodes_s = float(np.sum(decode_s)) / together
    if all_decodes_s > 0.0:
        decode_s = decode_s * (1.0 + float(np.sum(prefill_s)) / all_decodes_s)
    exec_s = prefill_s + decode_s
    wait_s = np.minimum(first_s - prefill_s, last_s - exec_s)
    gaps = np.maximum(left - 1, 1)
    wait_s = np.where(decode_s <= mean_s * gaps, wait_s, -math.inf)
    most_s = min(_MOST_S, _MOST_JOBS_S / len(requests) ** 2)
    beyond_s = np.clip(waited_s, 0.0, most_s) + np.clip(exec_s - busy_s, 0.0, most_s)
    return AnnealingProblem(
        exec_ns=np.maximum(whole_ns(np.minimum(busy_s, most_s)), 1)[:, None],
        latest_ns=whole_ns(wait_s)[:, None],
        waited_ns=whole_ns(beyond_s),
        kv_tokens=np.zeros(len(requests), np.int64),
        max_kv_tokens=0,
        start_ns=round(min(max(start_s, 0.0), most_s) * 1e9),
    )
