"""One simulated experiment: a load, a machine, a policy; at some rate and seed.

An `Experiment` holds all that decides its numbers, so that it can be run in any process
and gives the same report.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jserve.compiled_annealing import best_kernel
from jserve_sched.buckets import BucketTable
from jserve_sched.clock import WallClock
from jserve_sched.cost_model import CostModel
from jserve_sched.goodput import WARMUP_SHARE
from jserve_sched.instances import make_assignment
from jserve_sched.output_lengths import LengthEstimator, make_length_estimator
from jserve_sched.policies import PlannedAdmission, Policy, make_policy
from jserve_sched.report import distribution, summarise_run
from jserve_sched.scheduler import Scheduler
from jserve_sched.simulator import SimulationResult, make_scheduler, simulate
from jserve_sched.workload import Arrival, Yardstick
from jserve_tools.simulate_config import split_limit
from jserve_tools.simulated_loads import SimulatedLoad
from jserve_tools.simulated_predictors import make_predictor
from jserve_tools.step_logs import write_simulated_log

_MAX_SPANS = 5.0  # a run ends then, as a multiple of the time of arrivals


def _policy(spec: str) -> Policy:
    """Returns a fresh policy; a search is compiled, which changes no plan."""
    policy = make_policy(spec)
    if isinstance(policy, PlannedAdmission):  # no other is worth a compiler's start
        return make_policy(spec, kernel=best_kernel())
    return policy


def make_lengths(spec: str, arrivals: Sequence[Arrival]) -> LengthEstimator:
    """Returns a fresh estimator; an `oracle` knows the lengths of these arrivals."""
    return make_length_estimator(
        spec, {one.request_id: one.max_tokens for one in arrivals}
    )


def declare(
    arrivals: Sequence[Arrival], declared_tokens: int, *, max_model_len: int
) -> list[Arrival]:
    """Returns requests that say they take at most so many output tokens, as real ones.

    One says more if it takes more, and no more than the context has room for.
    """
    return [
        dataclasses.replace(
            one,
            declared_max_tokens=max(
                min(declared_tokens, max_model_len - one.num_prompt_tokens),
                one.max_tokens,
            ),
        )
        for one in arrivals
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that decides the numbers of a run, except rate and seed.

    Attributes:
      policy: Name and options, and after an @ its own limit of token positions in a
        step, as in `fcfs@512`; see `split_limit`.
      bucket_strategy: Name and options of the bucket strategy, for the report.
      buckets: Buckets that steps are padded to.
      cost_model: The machine.
      predictor: What the policy plans by; see `simulated_predictors`.
      load: The requests.
      yardstick: An idle machine's times, for SLOs relative to them.
      max_model_len: Tokens of the longest context.
      lag: Plans in flight beside the one that runs.
      noise: Deviation of the logarithm of step times.
      warmup_share: Share of the requests, the first ones, that are not counted; None
        for a tenth, and for none if all come at once.
      records_steps: Whether runs at a given rate report on steps.
      num_instances: Number of engines, each with such buckets and such a machine.
      assignment: Rule by which one of several engines gets a request; one of
        `instances.ASSIGNMENTS`.
      declared_max_tokens: Output tokens that each request says it takes at most; 0
        is what it takes.
      length_estimator: Output lengths that the policy plans by; see `make_lengths`.
    """

    policy: str
    bucket_strategy: str
    buckets: BucketTable
    cost_model: CostModel
    predictor: str
    load: SimulatedLoad
    yardstick: Yardstick
    max_model_len: int
    lag: int = 0
    noise: float = 0.0
    warmup_share: float | None = None
    records_steps: bool = True
    num_instances: int = 1
    assignment: str = "finish"
    declared_max_tokens: int = 0
    length_estimator: str = "max_tokens"

    def units(self, seed: int) -> list[Arrival]:
        """Returns the requests that a seed draws, at one a second."""
        return self.load.unit_arrivals(seed, self.yardstick)

    def arrivals(self, seed: int, qps: float) -> list[Arrival]:
        """Returns the same at a rate; infinite is all at once."""
        return self.load.arrivals(seed, self.yardstick, qps)

    def num_warmup(self, arrivals: Sequence[Arrival]) -> int:
        """Returns how many of the first requests are not counted."""
        share = self.warmup_share
        if share is None:
            share = 0.0 if self.load.config.one_shot else WARMUP_SHARE
        return int(len(arrivals) * share)

    def _scheduler(self, arrivals: Sequence[Arrival]) -> Scheduler:
        """Returns a fresh scheduler of one engine."""
        return make_scheduler(
            policy=_policy(split_limit(self.policy)[0]),
            cost_model=self.cost_model,
            buckets=self.buckets,
            predictor=make_predictor(
                self.predictor,
                self.cost_model,
                self.buckets,
                max_model_len=self.max_model_len,
            ),
            max_model_len=self.max_model_len,
            lengths=make_lengths(self.length_estimator, arrivals),
        )

    def simulate(
        self,
        arrivals: Sequence[Arrival],
        seed: int,
        *,
        records_steps: bool = False,
        stop_after_violations: int | None = None,
    ) -> SimulationResult:
        """Serves some arrivals with fresh schedulers; see `simulator.simulate`."""
        if self.declared_max_tokens:
            arrivals = declare(
                arrivals, self.declared_max_tokens, max_model_len=self.max_model_len
            )
        has_choice = self.num_instances > 1
        return simulate(
            [self._scheduler(arrivals) for _ in range(self.num_instances)],
            self.cost_model,
            arrivals,
            assignment=make_assignment(self.assignment) if has_choice else None,
            lag=self.lag,
            records_steps=records_steps,
            noise=self.noise,
            seed=seed,
            max_spans=math.inf if self.load.config.one_shot else _MAX_SPANS,
            stop_after_violations=stop_after_violations,
            num_uncounted=self.num_warmup(arrivals),
            clock=WallClock(),
        )

    def run(
        self, *, qps: float, seed: int, step_log: pathlib.Path | None = None
    ) -> dict[str, Any]:
        """Returns an entry of the report's `runs`.

        Args:
          qps: the rate; infinite if all come at once.
          seed: seed of requests and noise.
          step_log: a file for the steps; None for none.
        """
        arrivals = self.arrivals(seed, qps)
        has_steps = self.records_steps or step_log is not None
        result = self.simulate(arrivals, seed, records_steps=has_steps)
        if step_log is not None:
            write_simulated_log(
                step_log,
                result.steps or (),
                cost_model=self.cost_model,
                buckets=self.buckets,
                policy=self.policy,
                arrivals=arrivals,
            )
        num_warmup = self.num_warmup(arrivals)
        summary = summarise_run(
            result.outcomes[num_warmup:],
            steps=result.steps,
            block_tokens=self.buckets.block_tokens,
            counters=result.counters,
            labels=self._labels(qps, seed),
        )
        summary["num_warmup"] = num_warmup
        # Steps of a stretch advanced at once were not planned one by one.
        plans = distribution(
            one.plan_s * 1e3 for one in result.steps or () if one.plan_s
        )
        if plans is not None:
            summary["plan_ms"] = {name: plans[name] for name in ("p50", "p99")}
        summary["num_steps"] = result.num_steps
        if self.num_instances > 1:
            summary["instances"] = _instances(result, arrivals, num_warmup)
        # Nothing is compiled here, and without padding no bucket is worth telling.
        del summary["num_compiles_after_warmup"]
        if self.bucket_strategy == "none":
            del summary["num_programs"]
            summary.pop("steps_by_program", None)
        else:
            summary["buckets"] = self.buckets.to_json()
        assert result.wall_s is not None
        summary["simulation"] = {
            "wall_s": result.wall_s,
            "virtual_s": result.end_s,
            "steps_per_s": result.num_steps / result.wall_s,
            "requests_per_min": 60 * len(arrivals) / result.wall_s,
        }
        return summary

    def _labels(self, qps: float, seed: int) -> Mapping[str, Any]:
        labels: dict[str, Any] = {
            "policy": self.policy,
            "bucket_strategy": self.bucket_strategy,
            **({"qps": qps} if math.isfinite(qps) else {"is_one_shot": True}),
            "seed": seed,
            "max_num_batched_tokens": self.cost_model.max_num_batched_tokens,
        }
        if self.load.config.levels_qps:
            labels["levels_qps"] = list(self.load.config.levels_qps)
        return labels


def _instances(
    result: SimulationResult, arrivals: Sequence[Arrival], num_warmup: int
) -> list[dict[str, Any]]:
    """Returns each engine's part of the requests after the first `num_warmup`."""
    outcomes = dict(
        zip((one.request_id for one in arrivals), result.outcomes, strict=True)
    )
    for one in arrivals[:num_warmup]:
        del outcomes[one.request_id]
    span_s = result.end_s - arrivals[0].arrival_s
    rows = []
    for instance in result.instances:
        mine = [outcomes[name] for name in instance.request_ids if name in outcomes]
        row: dict[str, Any] = {
            "num_requests": len(mine),
            "output_tokens": sum(len(one.token_times_s) for one in mine),
            "num_steps": instance.num_steps,
            "busy_share": instance.busy_s / span_s,
        }
        if mine:
            row["attainment"] = sum(one.is_met for one in mine) / len(mine)
        rows.append(row)
    return rows
