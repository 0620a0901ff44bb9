"""Sets of waiting requests for tests of the annealing search.

Half have an SLO on their last token, half on the first token and the time between
tokens. Lengths are log-normal and the coefficients of the times are invented.
"""

import numpy as np

from jserve_sched.policies.annealing.problem import AnnealingProblem, make_problem
from jserve_sched.requests.request import Request
from jserve_sched.requests.slo import Slo
from jserve_sched.timing.request_latency import Bilinear, RequestLatency

LATENCY = RequestLatency(
    prefill=Bilinear(both=1e-4, batch=5e-3, length=2e-5, base=4e-2),
    decode=Bilinear(both=3e-7, batch=3e-4, length=9e-7, base=1.8e-2),
)
NOW_S = 100.0
NO_LIMIT = 10**9


def draw_requests(
    rng: np.random.Generator,
    num_jobs: int,
    *,
    max_waited_ms: int = 0,
    ttlt_s: float = 30.0,
    ttft_s: float = 10.0,
) -> list[Request]:
    """Returns requests with random lengths, SLOs and waiting times before `NOW_S`.

    Half of them have the first SLO, the others the second and 50 ms between tokens.
    """
    is_whole = rng.random(num_jobs) < 0.5
    prompts = np.exp(rng.normal(5.0, np.where(is_whole, 0.8, 1.1)))
    outputs = np.exp(rng.normal(5.3, np.where(is_whole, 0.6, 0.8)))
    waited_ms = rng.integers(max_waited_ms + 1, size=num_jobs)
    slos = (Slo(ttft_s=ttft_s, tbt_s=0.05), Slo(ttlt_s=ttlt_s))
    return [
        Request(
            request_id=str(index),
            arrival_s=NOW_S - float(waited_ms[index]) / 1e3,
            prompt_tokens=np.zeros(int(np.clip(prompts[index], 1, 2000)), np.int32),
            max_tokens=int(np.clip(outputs[index], 1, 1000)),
            slo=slos[int(is_whole[index])],
        )
        for index in range(num_jobs)
    ]


def draw(
    rng: np.random.Generator,
    num_jobs: int,
    max_batch: int,
    *,
    max_kv_tokens: int = NO_LIMIT,
    start_s: float = 0.0,
    **requests: float,
) -> AnnealingProblem:
    """Returns the problem of some of `draw_requests`."""
    return make_problem(
        draw_requests(rng, num_jobs, **requests),  # type: ignore[arg-type]
        LATENCY,
        now_s=NOW_S,
        max_batch=max_batch,
        max_kv_tokens=max_kv_tokens,
        start_s=start_s,
    )
