"""The two kinds of task, and the requests drawn from them.

A mix names a trace for each kind, and a seed draws half of the requests from each, so
every policy, batch size and prediction error gets the same requests.

The paper (arXiv 2504.14966) has one kind of task with an SLO on end-to-end latency,
such as code completion, and one with SLOs on TTFT and TPOT, such as chat. Its bounds
could not be determined: 30 s, 10 s and 50 ms are reconstructed, and the traces are not
the paper's.
"""

import dataclasses
import pathlib

import numpy as np

from jserve_sched.requests.service_class import ServiceClass
from jserve_sched.simulation.workload import Arrival
from jserve_tools.load.workload_trace import DEFAULT_TRACE, TraceRow, read_trace

TRACES = DEFAULT_TRACE.parent
CODE = ServiceClass(name="code", share=0.5, ttlt_s=30.0)
CHAT = ServiceClass(name="chat", share=0.5, ttft_s=10.0, tbt_s=0.050)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
    """Traces that the two kinds of task have their lengths from.

    Attributes:
      code: Trace of the code completions.
      chat: Trace of the chats.
    """

    code: pathlib.Path
    chat: pathlib.Path


AZURE = Mix(code=TRACES / "azure_code.csv", chat=TRACES / "azure_conv.csv")
# Not in the paper: completions as long as whole answers, with various lengths.
LONG_CODE = dataclasses.replace(AZURE, code=TRACES / "sharegpt_300.csv")
MIXES = {"azure": AZURE, "long_code": LONG_CODE}


def _pick(
    path: pathlib.Path, num_requests: int, rng: np.random.Generator
) -> list[TraceRow]:
    rows = read_trace(path)
    return [rows[index] for index in rng.choice(len(rows), num_requests, replace=False)]


def draw_requests(
    mix: Mix, *, num_requests: int, seed: int, qps: float = 0.0
) -> list[Arrival]:
    """Returns requests in random order, half of each kind, sorted by arrival.

    Args:
      seed: Seed of lengths, order and arrivals.
      qps: Rate of Poisson arrivals, requests per second; 0 makes all due at once.

    Raises:
      ValueError: If the number is odd, or a trace has too few rows.
    """
    if num_requests % 2:
        raise ValueError(f"num_requests={num_requests} is not even: half are of a kind")
    rng = np.random.default_rng(seed)
    half = num_requests // 2
    jobs = [(CODE, row) for row in _pick(mix.code, half, rng)]
    jobs += [(CHAT, row) for row in _pick(mix.chat, half, rng)]
    order = rng.permutation(num_requests)
    gaps_s = rng.exponential(1.0, num_requests)
    times_s = np.zeros(num_requests)
    if qps:
        times_s = (np.cumsum(gaps_s) - gaps_s[0]) / qps
    arrivals = []
    for place, (job, time_s) in enumerate(zip(order, times_s.tolist(), strict=True)):
        kind, row = jobs[job]
        arrivals.append(
            Arrival(
                request_id=f"{place:06d}",  # ties of arrival are broken by id
                arrival_s=time_s,
                num_prompt_tokens=row.prompt_tokens,
                max_tokens=row.output_tokens,
                service_class=kind.name,
                slo=kind.resolve(),
            )
        )
    return arrivals
