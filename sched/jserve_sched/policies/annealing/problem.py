"""What the search over orders and batches knows: tables, one row for each job.

A plan is an array: the number of each job's batch. It is read as in arXiv 2504.14966:
batches run one after another, all members of a batch start together, and G = n / t,
where n counts the jobs that attain their SLOs and t is the sum of all jobs' latencies.
That batches wait for one another is our reading of the paper's order and batch index;
the KV budget is ours, and that a bound on the time between tokens is judged by the last
token's deadline, as reports judge it.

Shapes: `N` jobs, `B` the largest batch.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jserve_sched.requests.request import Request
from jserve_sched.timing.request_latency import RequestLatency

JOB_SHARE = 1e-3  # of a job, added to n: it ranks plans in which no job is attained


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AnnealingProblem:
    """Jobs to be put into order and into batches, by job and batch size.

    Attributes:
      exec_s: `[N, B]` duration of a job in a batch of b, in column b - 1.
      latest_s: `[N, B]` longest wait from now with which the job attains its SLO;
        infinite without an SLO.
      waited_s: `[N]` time waited already, which is part of the latency.
      kv_tokens: `[N]` int64, tokens whose KV the job holds when it ends.
      max_kv_tokens: Most tokens of a batch; a job above it may stand alone.
      start_s: Time until the first batch can start, seconds.
    """

    exec_s: np.ndarray
    latest_s: np.ndarray
    waited_s: np.ndarray
    kv_tokens: np.ndarray
    max_kv_tokens: int
    start_s: float = 0.0


class Score(NamedTuple):
    """What a plan is worth: n, and t since the jobs' arrivals."""

    num_attained: int
    total_s: float

    @property
    def merit(self) -> float:
        """What plans are compared by: G in 1/s, and the shorter plan where it is 0."""
        return (self.num_attained + JOB_SHARE) / self.total_s


def evaluate(problem: AnnealingProblem, batch_of: np.ndarray) -> Score:
    """Returns what a plan `[N]` is worth."""
    sizes = np.bincount(batch_of)
    cell = np.arange(len(batch_of)), sizes[batch_of] - 1
    exec_s = problem.exec_s[cell]
    duration_s = np.zeros(len(sizes))
    np.maximum.at(duration_s, batch_of, exec_s)
    wait_s = (problem.start_s + np.cumsum(duration_s) - duration_s)[batch_of]
    return Score(
        num_attained=int(np.count_nonzero(wait_s <= problem.latest_s[cell])),
        total_s=float(np.sum(wait_s + exec_s + problem.waited_s)),
    )


def packed(problem: AnnealingProblem, order: Sequence[int]) -> np.ndarray:
    """Returns the plan that cuts an order into batches, each as full as it may be."""
    batch_of = np.zeros(len(order), np.int64)
    max_batch = problem.exec_s.shape[1]
    batch, size, room = -1, max_batch, 0
    for job, kv_tokens in zip(
        order, problem.kv_tokens[list(order)].tolist(), strict=True
    ):
        if size == max_batch or kv_tokens > room:
            batch, size, room = batch + 1, 0, problem.max_kv_tokens
        batch_of[job] = batch
        size, room = size + 1, room - kv_tokens
    return batch_of


def make_problem(
    requests: Sequence[Request],
    latency: RequestLatency,
    *,
    now_s: float,
    max_batch: int,
    max_kv_tokens: int,
    num_running: int = 0,
    start_s: float = 0.0,
) -> AnnealingProblem:
    """Returns the problem of these waiting requests, at least one, in their order.

    A request attains its SLO if it attains every bound. The prompt counts with all
    tokens known (one that was preempted computes its own answer again), the answer with
    the tokens expected to be left; one that has answered in part is judged by the
    deadline of its next token instead of its first.

    Args:
      max_batch: B, 1 or more.
      num_running: Requests that every batch joins: a batch of b takes as long as one of
        b and these.
      start_s: Time until the first batch can start, seconds.
    """
    rows = []
    for request in requests:
        slo, left = request.slo, request.expected_tokens_left
        due_s = request.arrival_s - now_s
        index = request.num_outputs_projected
        first_s = last_s = math.inf if slo.ttlt_s is None else due_s + slo.ttlt_s
        if slo.ttft_s is not None and slo.tbt_s is not None:
            next_s = due_s + slo.ttft_s + index * slo.tbt_s
            first_s = min(first_s, next_s)
            last_s = min(last_s, next_s + (left - 1) * slo.tbt_s)
        elif slo.ttft_s is not None and not index:
            first_s = min(first_s, due_s + slo.ttft_s)
        rows.append((request.num_known_tokens, left, -due_s, first_s, last_s))
    known, left, waited_s, first_s, last_s = np.array(rows, np.float64).T[:, :, None]
    batch = num_running + np.arange(1.0, max_batch + 1)
    prefill_s = latency.prefill.of(batch, known)  # [N, B]
    exec_s = prefill_s + latency.decode_s(batch, known, left)
    return AnnealingProblem(
        exec_s=exec_s,
        latest_s=np.minimum(first_s - prefill_s, last_s - exec_s),
        waited_s=np.maximum(waited_s[:, 0], 0.0),
        kv_tokens=(known + left)[:, 0].astype(np.int64),
        max_kv_tokens=max_kv_tokens,
        start_s=max(start_s, 0.0),
    )
