"""Sets of waiting requests for tests of the annealing search.

Half have an SLO on their last token, half on the first token and the time between
tokens. Lengths are log-normal and the coefficients of the times are invented.
"""

import dataclasses
from collections.abc import Sequence

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


@dataclasses.dataclass(frozen=True)
class Instance:
    """A set of waiting requests.

    Attributes:
      ttlt_s: SLO of half of the requests.
      ttft_s: SLO of the others, besides 50 ms between tokens.
      rows: Prompt tokens, output tokens, whether the SLO is `ttlt_s`, and ms waited, of
        each request.
    """

    max_batch: int
    max_kv_tokens: int
    start_ms: int
    ttlt_s: float
    ttft_s: float
    rows: Sequence[Sequence[int]]

    def problem(self) -> AnnealingProblem:
        slos = (Slo(ttft_s=self.ttft_s, tbt_s=0.05), Slo(ttlt_s=self.ttlt_s))
        requests = [
            Request(
                request_id=str(index),
                arrival_s=NOW_S - waited_ms / 1e3,
                prompt_tokens=np.zeros(prompt_tokens, np.int32),
                max_tokens=output_tokens,
                slo=slos[is_whole],
            )
            for index, (prompt_tokens, output_tokens, is_whole, waited_ms) in enumerate(
                self.rows
            )
        ]
        return make_problem(
            requests,
            LATENCY,
            now_s=NOW_S,
            max_batch=self.max_batch,
            max_kv_tokens=self.max_kv_tokens,
            start_s=self.start_ms / 1e3,
        )


def draw(
    rng: np.random.Generator,
    num_jobs: int,
    max_batch: int,
    *,
    max_kv_tokens: int = NO_LIMIT,
    start_ms: int = 0,
    max_waited_ms: int = 0,
    ttlt_s: float = 30.0,
    ttft_s: float = 10.0,
) -> Instance:
    """Returns requests with random lengths, SLOs and waiting times."""
    is_whole = rng.random(num_jobs) < 0.5
    prompts = np.exp(rng.normal(5.0, np.where(is_whole, 0.8, 1.1)))
    outputs = np.exp(rng.normal(5.3, np.where(is_whole, 0.6, 0.8)))
    rows = zip(
        np.clip(prompts, 1, 2000).astype(int).tolist(),
        np.clip(outputs, 1, 1000).astype(int).tolist(),
        is_whole.astype(int).tolist(),
        rng.integers(max_waited_ms + 1, size=num_jobs).tolist(),
        strict=True,
    )
    return Instance(max_batch, max_kv_tokens, start_ms, ttlt_s, ttft_s, tuple(rows))
