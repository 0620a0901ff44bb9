"""The settings of `jserve-simulate`: the load, the machine, and what is run on it.

Wrong values, and combinations of which a part would do nothing, are refused where a
config is made. `--help` imports no NumPy.
"""

import dataclasses
import pathlib
from typing import Literal

from jserve.config import check_range, check_readable
from jserve_sched.buckets.strategies import (
    FROM_FILE,
    SIMULATED_STRATEGIES,
    make_strategy,
)
from jserve_sched.buckets.table import DEFAULT_BLOCK_TOKENS
from jserve_tools.reporting.config import ReportConfig

LIMITS = ("max_num_seqs", "max_num_batched_tokens", "num_kv_tokens", "page_size")
_ANY = 2**40  # where only memory sets a limit


def _refuse_idle(config: object, name: str, needed: str) -> None:
    """Refuses a setting that would do nothing without another."""
    if getattr(config, name) is not None:
        raise ValueError(f"{name} would do nothing without {needed}")


def _check_ranges(config: object, **limits: tuple[float, float]) -> None:
    for name, (least, most) in limits.items():
        values = getattr(config, name)
        for value in values if isinstance(values, tuple) else (values,):
            if value is not None:
                check_range(name, value, least, most)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """What a simulation serves, and how fast it comes.

    Attributes:
      workload: SlidingServe's workload to draw. [default: mixed_v1]
      trace: CSV of arrival_s (seconds), prompt_tokens, output_tokens, and maybe
        service_class, the name of one of service_classes; in place of a workload.
      poisson: Give a trace's requests Poisson arrivals.
      num_requests: Requests of a run, of a trace the first ones. [default: 1000, or
        a whole trace]
      service_classes: JSON file: a list of classes, each with name, share and ttft_s
        or ttft_slowdown, tbt_s or tbt_step_multiple, ttlt_s (seconds, or multiples of
        an idle machine's time). Classes named as the workload's parts replace theirs;
        those that a trace names need no share.
      one_shot: All requests are due at time 0, so there is no rate.
      qps: Rates in requests per second. [default: the trace's own, or 1]
    """

    workload: (
        Literal["arxiv_v1", "arxiv_v2", "mixed_v1", "mixed_v2", "sharegpt"] | None
    ) = None
    trace: pathlib.Path | None = None
    poisson: bool = False
    num_requests: int | None = None
    service_classes: pathlib.Path | None = None
    one_shot: bool = False
    qps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.workload is not None and self.trace is not None:
            raise ValueError(f"workload={self.workload} and trace={self.trace}: one of")
        check_readable("trace", self.trace)
        check_readable("service_classes", self.service_classes)
        _check_ranges(self, num_requests=(2, _ANY), qps=(1e-6, 1e6))
        given = [name for name in ("qps", "poisson") if getattr(self, name)]
        if self.one_shot and given:
            raise ValueError(f"one_shot has no rate: leave out {', '.join(given)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """On what a simulation runs, and what its policies know.

    Attributes:
      cost_model: The machine: a GPU by name, or a profile of jserve-profile as
        table:SAMPLES.
      buckets: Bucket file (JSON) of bucket strategies explicit and fitted.
      block_tokens: Tokens in one prefill block; must divide the page size.
      max_model_len: Tokens of the longest request.
      max_num_seqs: Most requests that run at once. [default: the cost model's]
      max_num_batched_tokens: Most token positions in a step. [default: the cost
        model's]
      num_kv_tokens: Tokens that the KV pool holds. [default: the cost model's]
      page_size: Tokens in one KV page. [default: the cost model's]
      lag: 1 plans a step while the one before runs, as jserve does; 0 after it has
        ended.
      noise: Deviation of the logarithm of a step's time about the cost model's.
      predictor: What policies plan by: oracle is never wrong; linear and table are
        fitted to steps of the cost model.
      declared_max_tokens: Output tokens that each request says it takes at most, as
        far as the context has room; one that takes more says that. It ends by a stop
        token. 0: each says what it takes.
      length_estimator: What output lengths policies plan by, where requests declare
        more than they take, by name and options such as quantile:q=0.75, or the truth
        as oracle, made wrong as in oracle:error=0.5 or oracle:factor=10. [default:
        max_tokens]
      num_instances: Equal engines that serve the load together, each with its own
        scheduler.
      assignment: Which of several engines gets a request: finish, the one with the
        least work by predicted times; kv, the one with the most KV that no request
        will need; round_robin, each in turn. [default: finish]
    """

    cost_model: str = "a100-llama3-8b"
    buckets: pathlib.Path | None = None
    block_tokens: int = DEFAULT_BLOCK_TOKENS
    max_model_len: int = 16_384
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    num_kv_tokens: int | None = None
    page_size: int | None = None
    lag: int = 0
    noise: float = 0.0
    predictor: Literal["oracle", "linear", "table"] = "oracle"
    declared_max_tokens: int = 0
    length_estimator: str | None = None
    num_instances: int = 1
    assignment: Literal["finish", "kv", "round_robin"] | None = None

    def __post_init__(self) -> None:
        # NumPy takes a tenth of a second to import.
        from jserve_sched.requests.output_lengths import make_length_estimator
        from jserve_tools.gpu_profiles.machines import GPU_COST_MODELS

        check_readable("buckets", self.buckets)
        kind, _, rest = self.cost_model.partition(":")
        is_profile = kind == "table" and bool(rest)
        if not is_profile and self.cost_model not in GPU_COST_MODELS:
            raise ValueError(
                f"cost_model={self.cost_model} is unknown; known: "
                f"{', '.join(sorted(GPU_COST_MODELS))}, table:SAMPLES"
            )
        _check_ranges(
            self,
            **dict.fromkeys((*LIMITS, "block_tokens"), (1, _ANY)),
            max_model_len=(2, _ANY),
            declared_max_tokens=(0, _ANY),
            lag=(0, 1),
            noise=(0.0, 1.0),
            num_instances=(1, 64),
        )
        if self.num_instances == 1:
            _refuse_idle(self, "assignment", "num_instances of 2 or more")
        if self.length_estimator is not None:
            make_length_estimator(self.length_estimator, {})
        if not self.declared_max_tokens:
            _refuse_idle(self, "length_estimator", "declared_max_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Which runs are made, and what is reported of them.

    Attributes:
      policies: Scheduling policies, with options as in sliding:constructor=off, or
        classes of your own as in my_module.MyPolicy.
      bucket_strategies: Bucket strategies, each with every policy, with options as in
        linear:block_gap=4: none has no padding at all; explicit is the file in
        buckets; fitted is that file too, or without one fitted for each policy to this
        load, drawn with a seed that is not judged, with as many programs as pow2. Of a
        trace a seed draws the classes only: such a fit has seen the requests it is
        judged by. To judge by others, fit to another part of the trace with
        jserve-fit-buckets and give its file.
      goodput: Search the goodput instead of running at given rates.
      max_violation_share: Share of requests that may violate their SLO at the goodput.
        [default: 0.01]
      warmup_share: Share of the requests, the first ones, that are not counted.
        [default: 0.1, and 0 if all come at once]
      seed: Seed of lengths, arrivals, classes and noise.
      num_seeds: Number of seeds: seed, seed + 1, and so on.
      num_processes: Processes that share the runs.
      step_log: File that gets the steps of a single run, as a server records them, for
        jserve-fit-buckets.
    """

    policies: tuple[str, ...] = ("fcfs",)
    bucket_strategies: tuple[str, ...] = ("pow2",)
    goodput: bool = False
    max_violation_share: float | None = None
    warmup_share: float | None = None
    seed: int = 0
    num_seeds: int = 1
    num_processes: int = 1
    step_log: pathlib.Path | None = None

    def __post_init__(self) -> None:
        # NumPy takes a tenth of a second to import.
        from jserve_sched.policies.registry import make_policy

        for name in ("policies", "bucket_strategies"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: name at least one")
        for policy in self.policies:
            make_policy(policy)
        for strategy in self.bucket_strategies:
            if strategy not in FROM_FILE:
                make_strategy(strategy, SIMULATED_STRATEGIES)
        _check_ranges(
            self,
            max_violation_share=(0.0, 1.0),
            warmup_share=(0.0, 0.9),
            seed=(0, _ANY),
            num_seeds=(1, _ANY),
            num_processes=(1, _ANY),
        )
        if not self.goodput:
            _refuse_idle(self, "max_violation_share", "goodput")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """The whole call of `jserve-simulate`."""

    load: LoadConfig
    machine: MachineConfig
    sweep: SweepConfig
    report: ReportConfig

    def __post_init__(self) -> None:
        load, machine, sweep = self.load, self.machine, self.sweep
        for name in ("qps", "one_shot"):
            if sweep.goodput and getattr(load, name):
                raise ValueError(f"goodput searches the rate: leave out {name}")
        strategies = sweep.bucket_strategies
        if machine.buckets is not None and not set(FROM_FILE) & set(strategies):
            raise ValueError(
                f"buckets={machine.buckets} is for bucket strategies "
                f"{' and '.join(FROM_FILE)}, not {', '.join(strategies)}"
            )
        if machine.buckets is None and "explicit" in strategies:
            raise ValueError("bucket strategy explicit needs a file, --buckets=FILE")
        counts = [len(sweep.policies), len(strategies), len(load.qps)]
        is_single = max(*counts, sweep.num_seeds, machine.num_instances) == 1
        if sweep.step_log is not None and (sweep.goodput or not is_single):
            raise ValueError(
                f"step_log={sweep.step_log} is of a single run: one policy, bucket "
                "strategy, rate, seed and instance, without goodput"
            )
