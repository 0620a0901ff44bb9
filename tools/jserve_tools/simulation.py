"""One simulated experiment: a load, a machine, a policy; at some rate and seed.

The one idea: an `Experiment` holds all that decides its numbers, so that it can be
run anywhere and gives the same report.
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
from jserve_sched.policies import PlannedAdmission, Policy, make_policy
from jserve_sched.report import Outcome, distribution, summarise_run
from jserve_sched.scheduler import Scheduler
from jserve_sched.simulator import SimulationResult, make_scheduler, simulate
from jserve_sched.workload import Arrival, Yardstick
from jserve_tools.simulated_lengths import NO_ESTIMATES, declare, make_lengths
from jserve_tools.simulated_loads import Load
from jserve_tools.simulated_predictors import make_predictor
from jserve_tools.step_logs import write_simulated_log


def split_limit(spec: str) -> tuple[str, int | None]:
    """Returns a policy's spec and its limit of token positions in a step, if given.

    The limit bounds how long a request that comes during a step is kept waiting, so
    each policy has a best one of its own.

    Raises:
      ValueError: if the limit is no number of 1 or more.
    """
    policy, at, limit = spec.partition("@")
    if not at:
        return policy, None
    if not limit.isdecimal() or int(limit) < 1:
        raise ValueError(f"policy {spec!r}: {limit!r} is not a number of tokens")
    return policy, int(limit)


def _policy(spec: str) -> Policy:
    """Returns a fresh policy; a search is compiled, which changes no plan."""
    policy = make_policy(spec)
    if isinstance(policy, PlannedAdmission):  # no other is worth a compiler's start
        return make_policy(spec, kernel=best_kernel())
    return policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that decides the numbers of a run, but rate and seed.

    Attributes:
      policy: its name and options, and after an @ its own limit of token positions
        in a step, as in `fcfs@512`; see `split_limit`.
      bucket_strategy: its name, for the report.
      buckets: the compiled shapes.
      cost_model: the machine.
      predictor: what the policy plans by; see `simulated_predictors`.
      load: the requests.
      yardstick: an idle machine's times, for promises relative to them.
      max_model_len: the longest context.
      lag: plans in flight beside the one that runs.
      noise: deviation of the logarithm of step times.
      max_spans: see `simulate`.
      warmup_share: share of the requests, the first ones, that are not counted.
      records_steps: whether runs at a given rate report on steps.
      num_instances: engines, each with such buckets and such a machine.
      assignment: who of several gets a request; one of `instances.ASSIGNMENTS`.
      declared_max_tokens: output tokens that each request says it takes at most; 0
        is what it takes.
      length_estimator: what output lengths the policy plans by; see `make_lengths`.
    """

    policy: str
    bucket_strategy: str
    buckets: BucketTable
    cost_model: CostModel
    predictor: str
    load: Load
    yardstick: Yardstick
    max_model_len: int
    lag: int = 0
    noise: float = 0.0
    max_spans: float = 5.0
    warmup_share: float = WARMUP_SHARE
    records_steps: bool = True
    num_instances: int = 1
    assignment: str = "finish"
    declared_max_tokens: int = 0
    length_estimator: str = NO_ESTIMATES

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
        """Serves some arrivals with fresh schedulers."""
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
            max_spans=self.max_spans,
            stop_after_violations=stop_after_violations,
            num_uncounted=self.num_warmup(arrivals),
            clock=WallClock(),
        )

    def num_warmup(self, arrivals: Sequence[Arrival]) -> int:
        """Returns how many of the first requests are not counted."""
        return int(len(arrivals) * self.warmup_share)

    def run(
        self,
        arrivals: Sequence[Arrival],
        *,
        qps: float,
        seed: int,
        labels: Mapping[str, Any] | None = None,
        step_log: str = "",
    ) -> dict[str, Any]:
        """Serves some arrivals; returns an entry of the report's `runs`.

        Args:
          arrivals: the requests.
          qps: their rate, for the report; infinite if all come at once.
          seed: of the noise.
          labels: what else tells this run from others.
          step_log: a file for the steps; "" for none.
        """
        has_steps = self.records_steps or bool(step_log)
        result = self.simulate(arrivals, seed, records_steps=has_steps)
        if step_log:
            write_simulated_log(
                pathlib.Path(step_log).expanduser(),
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
            labels={
                "policy": self.policy,
                "bucket_strategy": self.bucket_strategy,
                **({"qps": qps} if math.isfinite(qps) else {"is_one_shot": True}),
                "seed": seed,
                "max_num_batched_tokens": self.cost_model.max_num_batched_tokens,
                **(labels or {}),
            },
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
        # Nothing is compiled here, and without padding no shape is worth telling.
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


def _instances(
    result: SimulationResult, arrivals: Sequence[Arrival], num_warmup: int
) -> list[dict[str, Any]]:
    """Returns each engine's part, for JSON.

    Args:
      result: of several engines.
      arrivals: the requests.
      num_warmup: how many of the first ones are not counted.
    """
    counted: dict[str, Outcome] = {
        one.request_id: outcome
        for one, outcome in zip(
            arrivals[num_warmup:], result.outcomes[num_warmup:], strict=True
        )
    }
    span_s = result.end_s - arrivals[0].arrival_s
    rows = []
    for instance in result.instances:
        mine = [counted[name] for name in instance.request_ids if name in counted]
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
