"""What the search over orders and batches knows: integer tables, one row a job.

The one idea: a job's duration depends on the job and on how many run beside it and on
nothing else, so both its duration and the longest wait with which it keeps its
promise are looked up by (job, batch size). What a promise is made of is settled here,
once; the search compares a wait with a bound.

A plan is read as in arXiv 2504.14966 (section 2 of our notes on it): batches run one
after another, all members of a batch start together, and G = n / t, where n counts
the jobs that keep their promises and t is the sum of all jobs' latencies. That the
batches wait for one another is our reading of its order and batch index; times as
whole nanoseconds, the KV budget and the rule for promises of both kinds are ours.

Shapes: `N` jobs, `B` the largest batch.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from jserve_sched.annealing_kernel import FOREVER_NS, MERIT_MET
from jserve_sched.request import Request
from jserve_sched.request_latency import RequestLatency

_MOST_NS = 2**62  # sums stay below it

TpotRule = Literal["mean", "anchored"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AnnealingProblem:
    """Jobs to be put into order and into batches.

    Attributes:
      exec_ns: `[N, B]` int64, 1 or more: duration of a job in a batch of b, in column
        b - 1.
      latest_ns: `[N, B]` int64: longest wait from now with which the job, in a batch of
        b, keeps its promise; `NEVER_NS` if it cannot, `FOREVER_NS` if it was promised
        nothing.
      waited_ns: `[N]` int64: what it has waited already; counts in its latency.
      kv_tokens: `[N]` int64: tokens whose KV it holds when it ends.
      max_kv_tokens: most tokens of a batch; a job above it may stand alone.
      start_ns: when the first batch can start, from now.
    """

    exec_ns: np.ndarray
    latest_ns: np.ndarray
    waited_ns: np.ndarray
    kv_tokens: np.ndarray
    max_kv_tokens: int
    start_ns: int = 0

    def __post_init__(self) -> None:
        if self.exec_ns.ndim != 2 or 0 in self.exec_ns.shape:
            raise ValueError(
                f"exec_ns must be [jobs, batch sizes], got {self.exec_ns.shape}"
            )
        num = len(self.exec_ns)
        for name, shape in (
            ("exec_ns", self.exec_ns.shape),
            ("latest_ns", self.exec_ns.shape),
            ("waited_ns", (num,)),
            ("kv_tokens", (num,)),
        ):
            table = getattr(self, name)
            if table.shape != shape or table.dtype != np.int64:
                raise ValueError(
                    f"{name} must be int64 {shape}, got {table.dtype} {table.shape}"
                )
        for name, lowest in (("exec_ns", 1), ("waited_ns", 0), ("kv_tokens", 0)):
            least = int(np.min(getattr(self, name)))
            if least < lowest:
                raise ValueError(f"{name} has {least}, below {lowest}")
        if self.start_ns < 0 or self.max_kv_tokens < 0:
            raise ValueError(
                f"start_ns={self.start_ns} or max_kv_tokens={self.max_kv_tokens} is "
                "below 0"
            )
        longest_ns = float(np.sum(np.max(self.exec_ns, axis=1), dtype=np.float64))
        most_ns = num * (longest_ns + float(np.max(self.waited_ns)) + self.start_ns)
        if most_ns >= _MOST_NS:
            raise ValueError(f"latencies sum up to {most_ns:.3g} ns, above 2**62")

    @property
    def num_jobs(self) -> int:
        """Jobs."""
        return len(self.exec_ns)

    @property
    def max_batch(self) -> int:
        """The largest batch."""
        return int(self.exec_ns.shape[1])


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """An order of jobs, cut into batches.

    Attributes:
      order: job indices, each once.
      sizes: batch k holds the next `sizes[k]` jobs of `order`.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Score:
    """What a plan is worth.

    Attributes:
      num_met: jobs that keep their promises, n.
      total_ns: sum of all jobs' latencies since their arrivals, t.
    """

    num_met: int
    total_ns: int

    @property
    def goal(self) -> float:
        """G = n / t in 1/s (arXiv 2504.14966)."""
        return self.num_met / self.total_ns * 1e9

    @property
    def merit(self) -> float:
        """What plans are compared by, 1/ns: G with a thousandth of a job added.

        Ours: where no job is met, G is 0 for every plan and the shorter one must win.
        """
        return (self.num_met + MERIT_MET) / self.total_ns


def whole_ns(seconds: np.ndarray) -> np.ndarray:
    """Returns int64 nanoseconds; a bound that is infinite becomes forever or never."""
    most_s = FOREVER_NS / 1e9  # times 1e9 it is the bound again, exactly
    clipped_s = np.clip(seconds, -most_s, most_s)  # first: the product may overflow
    return np.asarray(np.rint(clipped_s * 1e9), dtype=np.int64)


def make_problem(
    requests: Sequence[Request],
    latency: RequestLatency,
    *,
    now_s: float,
    max_batch: int,
    max_kv_tokens: int,
    num_running: int = 0,
    start_s: float = 0.0,
    tpot: TpotRule = "anchored",
) -> AnnealingProblem:
    """Returns the problem of these waiting requests, in their order.

    A request is held to every bound it has. The prompt counts with all tokens known
    (one that was preempted computes its own answer again), the answer with the tokens
    expected to be left. A request that has answered in part is held to the deadline
    of its next token instead of its first.

    Args:
      requests: at least one.
      latency: how long a request takes alone and in company.
      now_s: clock seconds.
      max_batch: the largest batch planned, B.
      max_kv_tokens: most KV tokens of a batch.
      num_running: requests that run already and whom every batch joins: a batch of b
        takes as long as one of b and so many more.
      start_s: when the first batch can start, seconds from now.
      tpot: how a bound on the time between tokens is judged. "mean": the mean of the
        answer, as the paper has it. "anchored": the last token by its deadline
        `ttft + k * tbt`, which the reports of this project judge by.

    Raises:
      ValueError: without requests, or if `max_batch` is below 1.
    """
    if not requests or max_batch < 1:
        raise ValueError(f"{len(requests)} requests, max_batch={max_batch}: both >= 1")
    num = len(requests)
    known, left, waited_s, first_s, last_s, mean_s = promises(requests, now_s, tpot)
    batch = num_running + np.arange(1, max_batch + 1, dtype=np.float64)
    prefill_s = latency.prefill_s(batch, known[:, None])  # [N, B]
    decode_s = latency.decode_s(batch, known[:, None], left[:, None])
    exec_s = prefill_s + decode_s
    gaps = np.maximum(left - 1, 1)[:, None]
    wait_s = np.minimum(first_s[:, None] - prefill_s, last_s[:, None] - exec_s)
    wait_s = np.where(decode_s <= mean_s[:, None] * gaps, wait_s, -math.inf)
    longest_ns = _MOST_NS / (4 * num * num)  # so that no sum of theirs can overflow
    exec_ns = whole_ns(exec_s)
    if float(np.sum(np.max(exec_ns, axis=1), dtype=np.float64)) > longest_ns * num:
        exec_ns = np.minimum(exec_ns, int(longest_ns))
    most_s = longest_ns * num * 1e-9
    return AnnealingProblem(
        exec_ns=np.maximum(exec_ns, 1),
        latest_ns=whole_ns(wait_s),
        waited_ns=whole_ns(np.clip(waited_s, 0.0, most_s)),
        kv_tokens=(known + left).astype(np.int64),
        max_kv_tokens=max_kv_tokens,
        start_ns=round(min(max(start_s, 0.0), most_s) * 1e9),
    )


def promises(
    requests: Sequence[Request], now_s: float, tpot: TpotRule
) -> tuple[np.ndarray, ...]:
    """Returns sizes and bounds of requests, `[N]` float64 each.

    They are: tokens known, tokens left, seconds waited, seconds from now until the
    next token is due and until the last one is, and the bound on the mean time between
    tokens. What was not promised is infinite.
    """
    rows = []
    for request in requests:
        slo, arrival_s = request.slo, request.arrival_s
        left = request.expected_tokens_left
        due_s = arrival_s - now_s
        index = request.num_outputs_projected
        first_s = last_s = math.inf if slo.ttlt_s is None else due_s + slo.ttlt_s
        mean_s = math.inf
        if slo.ttft_s is not None:
            gap_s = slo.tbt_s
            if gap_s is None:
                first_s = first_s if index else min(first_s, due_s + slo.ttft_s)
            else:
                first_s = min(first_s, due_s + slo.ttft_s + index * gap_s)
                if tpot == "mean":
                    mean_s = gap_s
                else:
                    end_s = due_s + slo.ttft_s + (index + left - 1) * gap_s
                    last_s = min(last_s, end_s)
        rows.append((request.num_known, left, -due_s, first_s, last_s, mean_s))
    return tuple(np.array(rows, np.float64).T)
