"""The cells of the reproduction: each is one simulation, or a search over several.

A cell is a frozen set of plain values that its result depends on, so it can be sent to
another process, run in any order, and found among finished runs.

The machine is Llama-3-8B on an A100 with 128 slots and pages of 128 tokens. The
isolated TTFT is that of unpadded steps of 2,048 tokens, for every policy, with and
without buckets, so that all have the same SLOs.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np

from benchmarks.slidingserve import paper
from jserve_sched.buckets.strategies import Continuous, PowersOfTwo
from jserve_sched.buckets.table import BucketTable
from jserve_sched.outcomes import Outcome
from jserve_sched.policies.registry import make_policy
from jserve_sched.simulation import goodput
from jserve_sched.simulation.cost_model import CLOSED_FORMS
from jserve_sched.simulation.mixes import WORKLOADS
from jserve_sched.simulation.simulator import SimulationResult, make_scheduler, simulate
from jserve_sched.simulation.workload import (
    Arrival,
    at_rate,
    isolated_times,
    unit_arrivals,
)
from jserve_tools.simulating.predictors import make_predictor

MACHINE = dataclasses.replace(CLOSED_FORMS["a100-llama3-8b"], max_num_seqs=128)
MAX_MODEL_LEN = 65_536
BLOCK_TOKENS = 32
# A full step: 2,048 prompt tokens beside all slots.
FULL_STEP_TOKENS = MACHINE.max_num_batched_tokens + MACHINE.max_num_seqs
CONTINUOUS: Final = "continuous"
BUCKETS: Final = "buckets"
CURVE_BIN_S = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of the reproduction.

    Attributes:
      kind: Kind of work. `pass` tests whether one rate passes; `goodput` searches the
        highest rate that does; `load` is one run to its end at one rate; `transient` is
        one run at a rate that alternates between levels.
      workload: Name of the workload.
      shape: Padding of steps: `continuous` has none, `buckets` pads to powers of two.
      policy: Name and options of the policy.
      limit_tokens: Most token positions in a step, padding included.
      predictor: Predictor of step times: `oracle`, or `linear` for the paper's model.
      seed: Seed of the requests.
      num_requests: Number of requests in a run or probe, including the first, which are
        not counted.
      qps: Rate in requests per second; of a search the first rate tried.
      resolution: Relative distance of the rates that a search tries.
      levels_qps: Rates of a transient load, which take turns.
      period_s: Duration of each level, seconds.
      duration_s: End of the arrivals of a transient load, seconds.
    """

    kind: Literal["pass", "goodput", "load", "transient"]
    workload: str
    shape: str
    policy: str
    limit_tokens: int
    predictor: str = "oracle"
    seed: int
    num_requests: int = 0
    qps: float = 0.0
    resolution: float = 0.02
    levels_qps: tuple[float, ...] = ()
    period_s: float = 0.0
    duration_s: float = 0.0

    def run(self) -> dict[str, Any]:
        """Returns the result, in the types of JSON.

        It is `passes` of a pass; the fields of `goodput.SeedGoodput` of a goodput; and
        the result of `_experience` of the others.
        """
        if self.kind == "pass":
            num_violations, num_counted = self._probe(self.qps)
            return {"passes": num_violations <= goodput.most_violations(num_counted)}
        if self.kind == "goodput":
            found = goodput.search_seed(
                lambda qps, seed: self._probe(qps),
                self.seed,
                grid=goodput.RateGrid(resolution=self.resolution),
                start_qps=self.qps,
            )
            return dataclasses.asdict(found)
        if self.kind == "load":
            num_uncounted = goodput.num_warmup(self.num_requests)
            result = self._simulate(self._arrivals(self.qps), num_uncounted)
            return _experience(result.outcomes[num_uncounted:])
        return self._transient()

    def _arrivals(self, qps: float) -> list[Arrival]:
        return at_rate(_unit_arrivals(self.workload, self.seed, self.num_requests), qps)

    def _probe(self, qps: float) -> tuple[int, int]:
        """Returns violations and counted requests; stops once the rate cannot pass."""
        num_uncounted = goodput.num_warmup(self.num_requests)
        num_counted = self.num_requests - num_uncounted
        limit = goodput.most_violations(num_counted)
        result = self._simulate(self._arrivals(qps), num_uncounted, limit)
        return sum(not one.is_attained for one in result.outcomes[num_uncounted:]), (
            num_counted
        )

    def _transient(self) -> dict[str, Any]:
        """Returns `_experience`, and violations by the time when requests ended."""
        expected = max(self.levels_qps) * self.duration_s
        enough = math.ceil(expected + 6 * math.sqrt(expected) + 20)
        arrivals = at_levels(
            _unit_arrivals(self.workload, self.seed, enough),
            self.levels_qps,
            period_s=self.period_s,
            duration_s=self.duration_s,
        )
        result = self._simulate(arrivals, 0)
        ends_s = [
            one.token_times_s[-1] if one.failure is None else result.end_s
            for one in result.outcomes
            if not one.is_attained
        ]
        num_bins = math.ceil(result.end_s / CURVE_BIN_S)
        bins = np.clip(np.array(ends_s, np.float64) // CURVE_BIN_S, 0, num_bins - 1)
        counts = np.bincount(bins.astype(np.int64), minlength=num_bins)
        return _experience(result.outcomes) | {"violations_by_bin": counts.tolist()}

    def _simulate(
        self,
        arrivals: list[Arrival],
        num_uncounted: int,
        stop_after_violations: int | None = None,
    ) -> SimulationResult:
        table = bucket_table(self.shape, self.limit_tokens)
        limited = dataclasses.replace(MACHINE, max_num_batched_tokens=self.limit_tokens)
        scheduler = make_scheduler(
            policy=make_policy(self.policy),
            cost_model=limited,
            buckets=table,
            predictor=make_predictor(
                self.predictor, limited, table, max_model_len=MAX_MODEL_LEN
            ),
            max_model_len=MAX_MODEL_LEN,
        )
        return simulate(
            scheduler,
            limited,
            arrivals,
            num_uncounted=num_uncounted,
            stop_after_violations=stop_after_violations,
        )


def _experience(outcomes: list[Outcome]) -> dict[str, Any]:
    """Returns counts, and the TTFT of requests in time and late, in seconds."""
    on_time_s: list[float] = []
    late_s: list[float] = []
    for one in outcomes:
        if one.ttft_s is not None:
            bound_s = one.slo.ttft_s
            is_late = bound_s is not None and one.ttft_s > bound_s
            (late_s if is_late else on_time_s).append(round(one.ttft_s, 4))
    return {
        "num_requests": len(outcomes),
        "num_violations": sum(not one.is_attained for one in outcomes),
        "num_unserved": len(outcomes) - len(on_time_s) - len(late_s),
        "on_time_ttft_s": on_time_s,
        "late_ttft_s": late_s,
    }


def at_levels(
    arrivals: Sequence[Arrival],
    levels_qps: Sequence[float],
    *,
    period_s: float,
    duration_s: float,
) -> list[Arrival]:
    """Returns unit-rate arrivals at a rate that goes through levels, again and again.

    SlidingServe's Fig. 6 has levels 1.0 and 2.5, a period of 120 s and a duration of
    1,200 s.

    Args:
      period_s: Duration of each level, seconds.
      duration_s: End of the last level, seconds.

    Raises:
      ValueError: If there are too few `arrivals` for the duration.
    """
    edges_s = np.append(np.arange(0.0, duration_s, period_s), duration_s)
    rates = np.resize(np.array(levels_qps, np.float64), len(edges_s) - 1)
    expected = np.append(0.0, np.cumsum(rates * np.diff(edges_s)))
    if arrivals[-1].arrival_s < expected[-1]:
        raise ValueError(
            f"{len(arrivals)} requests do not last {duration_s:g} s at "
            f"{list(levels_qps)} a second: about {expected[-1]:.0f} come"
        )
    units = [one for one in arrivals if one.arrival_s < expected[-1]]
    times_s = np.interp([one.arrival_s for one in units], expected, edges_s).tolist()
    return [
        dataclasses.replace(one, arrival_s=time_s)
        for one, time_s in zip(units, times_s, strict=True)
    ]


@functools.lru_cache(maxsize=4)
def _unit_arrivals(workload: str, seed: int, num_requests: int) -> list[Arrival]:
    return unit_arrivals(
        WORKLOADS[workload],
        num_requests=num_requests,
        seed=seed,
        yardstick=isolated_times(MACHINE, max_prompt_tokens=MAX_MODEL_LEN),
    )


@functools.lru_cache(maxsize=16)
def bucket_table(shape: str, limit_tokens: int) -> BucketTable:
    """Returns the table of a shape.

    `buckets` has rows 1, 2, 4 .. 128 and blocks of 32 tokens 0, 1, 2, 4 .. 64, whatever
    the limit is. `continuous` has a bucket for every count up to the limit.
    """
    if shape == CONTINUOUS:
        return Continuous().table(
            max_num_seqs=MACHINE.max_num_seqs,
            max_num_batched_tokens=limit_tokens,
            block_tokens=1,
        )
    return PowersOfTwo().table(
        max_num_seqs=MACHINE.max_num_seqs,
        max_num_batched_tokens=FULL_STEP_TOKENS,
        block_tokens=BLOCK_TOKENS,
    )


def paper_start_qps(workload: str) -> float:
    """Returns the rate at which a first search starts.

    The simulated card is about 2.5 times as fast as the paper's two.
    """
    return 2.5 * paper.goodput_qps(workload, "edf", paper.LLAMA)
