"""One simulated experiment: a load, a machine and a policy, at a rate and with a seed.

An `Experiment` holds everything that its results depend on, except rate and seed, so it
can run in any process.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

from jserve.compiled_annealing import best_kernel
from jserve_sched.buckets.table import BucketTable
from jserve_sched.outcomes import summarise_run
from jserve_sched.policies.registry import make_policy
from jserve_sched.requests.output_lengths import LengthEstimator, make_length_estimator
from jserve_sched.routing import Dispatcher
from jserve_sched.scheduler import Scheduler
from jserve_sched.simulation.bound import attained_bound
from jserve_sched.simulation.cost_model import ClosedForm, CostModel, scaled
from jserve_sched.simulation.disturbance import Disturbance
from jserve_sched.simulation.goodput import (
    MAX_VIOLATION_SHARE,
    WARMUP_SHARE,
    RateGrid,
    most_violations,
    search_seed,
)
from jserve_sched.simulation.instances import Routing
from jserve_sched.simulation.simulator import SimulationResult, make_scheduler, simulate
from jserve_sched.simulation.workload import Arrival, Yardstick, at_rate
from jserve_tools.fitting.step_logs import write_simulated_log
from jserve_tools.simulating.config import (
    DISTURBANCES,
    MachineConfig,
    SweepConfig,
)
from jserve_tools.simulating.loads import SimulatedLoad
from jserve_tools.simulating.predictors import make_predictor

_MAX_SPANS = 5.0  # end of a run, as a multiple of the span of arrivals


NO_ESTIMATES = "max_tokens"


def make_lengths(spec: str, arrivals: Sequence[Arrival]) -> LengthEstimator:
    """Returns a fresh estimator; an `oracle` knows the lengths of these arrivals."""
    return make_length_estimator(
        spec, {one.request_id: one.max_tokens for one in arrivals}
    )


def declare(
    arrivals: Sequence[Arrival], declared_tokens: int, *, max_model_len: int
) -> list[Arrival]:
    """Returns requests that declare `declared_tokens` as their most output tokens.

    A request declares its own length if that is larger, and less if the context has
    less room.
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
    """One policy on one machine and load.

    Attributes:
      policy: Name and options of the policy.
      bucket_strategy: Name and options of the bucket strategy, for the report.
      buckets: Buckets that steps are padded to.
      cost_model: Costs and limits of each engine's machine.
      load: Requests and their rates.
      yardstick: Times of an idle machine, for SLOs that are multiples of them.
      machine: Settings of engines and policies.
      sweep: Settings of what is counted and recorded, and of the goodput.
    """

    policy: str
    bucket_strategy: str
    buckets: BucketTable
    cost_model: CostModel
    load: SimulatedLoad
    yardstick: Yardstick
    machine: MachineConfig
    sweep: SweepConfig

    def units(self, seed: int) -> list[Arrival]:
        """Returns the requests that a seed draws, at one a second."""
        arrivals = self.load.unit_arrivals(seed, self.yardstick)
        if (rule := self.load.config.admission) is None:
            return arrivals
        return [dataclasses.replace(one, admission=rule) for one in arrivals]

    def arrivals(self, seed: int, qps: float) -> list[Arrival]:
        """Returns the requests at a rate; infinite makes all due at once."""
        return at_rate(self.units(seed), qps)

    def num_warmup(self, arrivals: Sequence[Arrival]) -> int:
        """Returns the number of requests at the start that are not counted."""
        share = self.sweep.warmup_share
        if share is None:
            share = 0.0 if self.load.config.one_shot else WARMUP_SHARE
        return int(len(arrivals) * share)

    def _scheduler(self, arrivals: Sequence[Arrival], speed: float) -> Scheduler:
        """Returns a fresh scheduler for one engine."""
        machine = self.machine
        return make_scheduler(
            policy=make_policy(self.policy, make_kernel=best_kernel),
            cost_model=self.cost_model,
            buckets=self.buckets,
            predictor=make_predictor(
                machine.predictor,
                scaled(self.cost_model, speed),
                self.buckets,
                max_model_len=machine.max_model_len,
            ),
            max_model_len=machine.max_model_len,
            lengths=make_lengths(machine.length_estimator or NO_ESTIMATES, arrivals),
            enable_prefix_caching=machine.enable_prefix_caching
            and all(one.block_ids for one in arrivals),
        )

    def simulate(
        self, arrivals: Sequence[Arrival], seed: int, **options: Any
    ) -> SimulationResult:
        """Serves requests with fresh schedulers; a seed draws the noise.

        `options` are further arguments of `simulator.simulate`.
        """
        machine = self.machine
        if machine.declared_max_tokens:
            arrivals = declare(
                arrivals,
                machine.declared_max_tokens,
                max_model_len=machine.max_model_len,
            )
        num_instances = machine.num_instances
        speeds = machine.instance_speeds or (1.0,) * num_instances
        routing = None
        if num_instances > 1:
            dispatcher = Dispatcher(machine.router, num_instances, seed)
            routing = Routing(dispatcher, snapshot_age_s=machine.snapshot_age_s)
        return simulate(
            [self._scheduler(arrivals, speed) for speed in speeds],
            self.cost_model,
            arrivals,
            routing=routing,
            speeds=speeds,
            lag=machine.lag,
            disturbance=Disturbance(
                **{name: getattr(machine, name) for name in DISTURBANCES}
            ),
            seed=seed,
            max_spans=math.inf if self.load.config.one_shot else _MAX_SPANS,
            num_uncounted=self.num_warmup(arrivals),
            max_returns=self.load.config.max_returns,
            clock=time.monotonic,
            **options,
        )

    def run(self, seed: int, qps: float) -> dict[str, Any]:
        """Returns an entry of the report's `runs`; writes the step log if configured.

        An infinite rate makes all requests due at once.
        """
        # Simulate.
        arrivals = self.arrivals(seed, qps)
        start_s = time.monotonic()
        result = self.simulate(arrivals, seed, records_steps=True)
        wall_s = time.monotonic() - start_s
        steps = result.steps or ()
        if self.sweep.step_log is not None:
            write_simulated_log(
                self.sweep.step_log,
                steps,
                cost_model=self.cost_model,
                buckets=self.buckets,
                policy=self.policy,
                arrivals=arrivals,
            )

        # Summarise the counted requests and all steps.
        num_warmup = self.num_warmup(arrivals)
        labels: dict[str, Any] = {
            "policy": self.policy,
            "bucket_strategy": self.bucket_strategy,
            **({"qps": qps} if math.isfinite(qps) else {"is_one_shot": True}),
            "seed": seed,
            "max_num_batched_tokens": self.cost_model.max_num_batched_tokens,
        }
        summary = summarise_run(
            result.outcomes[num_warmup:],
            steps=steps,
            block_tokens=self.buckets.block_tokens,
            counters=result.counters,
            labels=labels,
        )
        summary["num_warmup"] = num_warmup

        # Add what only a simulation knows.
        summary["num_steps"] = result.num_steps
        if self.machine.num_instances > 1:
            summary["instances"] = _instances(result, arrivals, num_warmup)
        # Nothing is compiled here, and without padding there are no buckets to report.
        del summary["num_compiles_after_warmup"]
        if self.bucket_strategy == "none":
            del summary["num_programs"]
            summary.pop("steps_by_program", None)
        else:
            summary["buckets"] = self.buckets.to_json()
        summary["simulation"] = {
            "wall_s": wall_s,
            "virtual_s": result.end_s,
            "steps_per_s": result.num_steps / wall_s,
            "requests_per_min": 60 * len(arrivals) / wall_s,
        }
        return summary

    def bound(self, seed: int, qps: float) -> dict[str, Any]:
        """Returns fields of `runs`: the share of requests that any schedule attains.

        Counted requests are served as if there were no others.
        """
        assert isinstance(self.cost_model, ClosedForm)
        arrivals = self.arrivals(seed, qps)
        counted = arrivals[self.num_warmup(arrivals) :]
        found = attained_bound(counted, self.cost_model, clock=time.monotonic)
        return {"attainment_bound": found.num_attained / len(counted)}

    def start_qps(self, seed: int) -> float:
        """Returns a rate near the goodput, for a search to start from.

        It is half the rate of a machine that computes prompts one by one and shares a
        decode step among sixteen requests.
        """
        units, yardstick = self.units(seed), self.yardstick
        prefill_s = statistics.fmean(
            yardstick.isolated_ttft_s(one.num_prompt_tokens) for one in units
        )
        decode_s = statistics.fmean(one.max_tokens for one in units) * yardstick.step_s
        return 0.5 / (prefill_s + decode_s / 16)

    def search(self, seed: int, start_qps: float) -> dict[str, Any]:
        """Returns the fields of a seed's SeedGoodput.

        A probe stops once it has too many violations to pass.
        """
        units = self.units(seed)
        num_warmup = self.num_warmup(units)
        max_share = self.sweep.max_violation_share
        if max_share is None:
            max_share = MAX_VIOLATION_SHARE
        limit = most_violations(len(units) - num_warmup, max_share)

        def probe(qps: float, seed: int) -> tuple[int, int]:
            result = self.simulate(
                at_rate(units, qps), seed, stop_after_violations=limit
            )
            counted = result.outcomes[num_warmup:]
            return sum(not one.is_attained for one in counted), len(counted)

        grid = RateGrid(lowest_qps=start_qps / 100, highest_qps=start_qps * 100)
        found = search_seed(
            probe, seed, grid=grid, start_qps=start_qps, max_share=max_share
        )
        return dataclasses.asdict(found)


def _instances(
    result: SimulationResult, arrivals: Sequence[Arrival], num_warmup: int
) -> list[dict[str, Any]]:
    """Returns an entry for each engine, of requests after the first `num_warmup`."""
    outcomes = {
        arrival.request_id: outcome
        for arrival, outcome in zip(
            arrivals[num_warmup:], result.outcomes[num_warmup:], strict=True
        )
    }
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
            row["attainment"] = sum(one.is_attained for one in mine) / len(mine)
        rows.append(row)
    return rows
