"""Why QoServe violates 82 % on arxiv_v1 in the paper and few here: factor by factor.

  python -m benchmarks.slidingserve.paper_machine

Simulates arxiv_v1 above the goodput of `sliding` on the paper's machine, two RTX 3090
by arithmetic, with one thing changed at a time. Prints the table of paper_machine.md.
"""

import dataclasses
import math
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from jserve.program import run_program
from jserve_sched.buckets.strategies import Continuous
from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.qoserve import QoServe
from jserve_sched.policies.registry import make_policy
from jserve_sched.requests.facts import Facts
from jserve_sched.simulation import goodput
from jserve_sched.simulation.cost_model import CostModel
from jserve_sched.simulation.mixes import WORKLOADS
from jserve_sched.simulation.simulator import (
    SimulationResult,
    make_scheduler,
    simulate,
)
from jserve_sched.simulation.workload import at_rate, isolated_times, unit_arrivals
from jserve_tools.gpu_profiles.machines import load_machine
from jserve_tools.reporting.documents import commit
from jserve_tools.simulating.predictors import make_predictor

_REQUESTS = flags.DEFINE_integer("num_requests", 1000, "Requests in a run.")
_SEEDS = flags.DEFINE_list("seeds", ["31", "32"], "Seeds of the requests.")
_GOODPUT = flags.DEFINE_float("goodput", 0.0, "Goodput of sliding; 0 searches it.")
_ONLY = flags.DEFINE_list("only", [], "Factors to run, by the start of their names.")

_MAX_MODEL_LEN = 65_536
_LOAD = 1.10
_TUNED = "qoserve:alpha_s_per_token=0.0002"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Released(QoServe):
    """QoServe's relegation as released: decided once, by a throughput, for ever.

    Attributes:
      tokens_per_s: Prompt tokens a second by which a request is held to be late; with
        an infinite one only a request that is late already is.
    """

    alpha_s_per_token: float = 0.0002
    tokens_per_s: float = 8500.0
    marked: set[str] = dataclasses.field(default_factory=set)

    def _order(
        self, view: SchedulerView, prompts: Facts, alone_s: np.ndarray
    ) -> np.ndarray:
        left_s = prompts.tokens / self.tokens_per_s
        is_late = view.start_s + left_s > prompts.deadline_s
        names = [one.request_id for one in prompts.requests]
        self.marked.update(np.array(names)[is_late].tolist())
        relegated = np.array([name in self.marked for name in names])
        priority_s = prompts.deadline_s + self.alpha_s_per_token * prompts.tokens
        return np.lexsort((prompts.arrival_s, priority_s, relegated))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overhead(CostModel):
    """A machine whose host adds a time to every step."""

    machine: CostModel
    overhead_s: float

    def step_s(self, matrix: np.ndarray, block_tokens: int) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        return self.machine.step_s(matrix, block_tokens) + self.overhead_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """A simulated set-up, in the factors that may differ from the paper's.

    Attributes:
      policy: Name and options, or `released` with options of `Released`.
      step_tokens: Most tokens of a step.
      kv_share: Share of the KV pool that there is.
      gap_cv: Coefficient of variation of the time between arrivals.
      overhead_s: Host time that every step takes longer, seconds.
    """

    machine: str = "roofline:device=rtx3090:model=llama-8b:tensor_parallel=2"
    policy: str = _TUNED
    released: Released | None = None
    step_tokens: int = 2176
    kv_share: float = 1.0
    gap_cv: float = 1.0
    predictor: str = "oracle"
    overhead_s: float = 0.0

    def cost_model(self) -> CostModel:
        """Returns the machine."""
        cost = load_machine(self.machine)
        cost = dataclasses.replace(
            cost,
            page_size=16,
            max_num_seqs=128,
            num_kv_tokens=int(self.kv_share * cost.num_kv_tokens),
            max_num_batched_tokens=self.step_tokens,
        )
        if not self.overhead_s:
            return cost
        limits = {
            field.name: getattr(cost, field.name)
            for field in dataclasses.fields(CostModel)
        }
        return Overhead(machine=cost, overhead_s=self.overhead_s, **limits)

    def run(
        self, qps: float, seed: int, num_requests: int, stop: int | None = None
    ) -> SimulationResult:
        """Serves requests at a rate; `stop` is `stop_after_violations`."""
        (part,) = WORKLOADS["arxiv_v1"]
        yardstick = isolated_times(
            load_machine(self.machine), max_prompt_tokens=_MAX_MODEL_LEN
        )
        units = unit_arrivals(
            [dataclasses.replace(part, gap_cv=self.gap_cv)],
            num_requests=num_requests,
            seed=seed,
            yardstick=yardstick,
        )
        cost = self.cost_model()
        table = Continuous().table(
            max_num_seqs=cost.max_num_seqs,
            max_num_batched_tokens=cost.max_num_batched_tokens,
            block_tokens=1,
        )
        released = self.released and dataclasses.replace(self.released, marked=set())
        scheduler = make_scheduler(
            policy=released or make_policy(self.policy),
            cost_model=cost,
            buckets=table,
            predictor=make_predictor(
                self.predictor, cost, table, max_model_len=_MAX_MODEL_LEN
            ),
            max_model_len=_MAX_MODEL_LEN,
        )
        return simulate(
            scheduler,
            cost,
            at_rate(units, qps),
            max_spans=20.0,
            stop_after_violations=stop,
            num_uncounted=goodput.num_warmup(num_requests),
        )

    def goodput_qps(self, seed: int, num_requests: int) -> float:
        """Returns the highest rate with at most 1 % violations."""
        skipped = goodput.num_warmup(num_requests)
        limit = goodput.most_violations(num_requests - skipped)

        def probe(qps: float, seed: int) -> tuple[int, int]:
            found = self.run(qps, seed, num_requests, limit).outcomes[skipped:]
            return sum(not one.is_attained for one in found), len(found)

        grid = goodput.RateGrid(resolution=0.02)
        found = goodput.search_seed(probe, seed, grid=grid, start_qps=1.1)
        return found.qps


FACTORS: dict[str, dict[str, Any]] = {
    "nothing: `qoserve`, tuned": {},
    "policy: `sliding`": {"policy": "sliding"},
    "policy: `edf`": {"policy": "edf"},
    "relegation: none": {"policy": f"{_TUNED}:relegation=off"},
    "relegation: as released, for ever": {"released": Released()},
    "relegation: once it is late": {"released": Released(tokens_per_s=math.inf)},
    "work weighs 8 ms a token": {"policy": "qoserve"},
    "work weighs 8 ms a token, no relegation": {"policy": "qoserve:relegation=off"},
    "steps of 512 tokens": {"policy": f"{_TUNED}:max_chunk_tokens=512"},
    "a margin of 1.2": {"policy": f"{_TUNED}:margin=1.2"},
    "the linear predictor": {"predictor": "linear"},
    "a quarter of the KV": {"kv_share": 0.25},
    "30 ms of host time a step": {"overhead_s": 0.03},
    "arrivals with a CV of 2": {"gap_cv": 2.0},
}


def row(name: str, setup: Setup, qps: float) -> str:
    """Returns the table's row of a factor."""
    num_requests = _REQUESTS.value
    percents, ttfts_s, num_preemptions = [], list[float](), 0
    for seed in map(int, _SEEDS.value):
        result = setup.run(qps, seed, num_requests)
        counted = result.outcomes[goodput.num_warmup(num_requests) :]
        percents.append(100 * statistics.fmean(not one.is_attained for one in counted))
        ttfts_s += [one.ttft_s for one in counted if one.ttft_s is not None]
        num_preemptions += result.counters.num_preemptions
    by_seed = ", ".join(f"{one:.1f}" for one in percents)
    p50_s, p90_s = np.percentile(ttfts_s, (50, 90)).tolist()
    return (
        f"| {name} | {statistics.fmean(percents):.1f} ({by_seed}) | "
        f"{p50_s:.1f}, {p90_s:.1f} | {num_preemptions} |"
    )


def main(argv: Sequence[str]) -> None:
    """Prints a row for each factor."""
    del argv
    qps = _GOODPUT.value
    if not qps:
        sliding = Setup(policy="sliding")
        qps = statistics.fmean(
            sliding.goodput_qps(int(seed), _REQUESTS.value) for seed in _SEEDS.value
        )
    print(f"goodput of sliding {qps:.3f}/s; {_REQUESTS.value} requests, {commit()}")
    print("| changed | violations % | TTFT P50, P90 s | preempted |")
    print("| --- | --: | --: | --: |")
    for name, changes in FACTORS.items():
        if any(name.startswith(one) for one in _ONLY.value or [""]):
            print(row(name, Setup(**changes), _LOAD * qps), flush=True)


if __name__ == "__main__":
    run_program(sys.modules[__name__])
