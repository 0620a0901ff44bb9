"""Configuration of `jserve-simulate`: the load, the machine and the runs.

Invalid values, and settings without an effect, are refused when a config is made.
`--help` imports no NumPy.
"""

import dataclasses
import pathlib
from typing import Literal

from jserve.config import check_readable, check_writable
from jserve_sched.buckets.strategies import (
    FROM_FILE,
    SIMULATED_STRATEGIES,
    make_strategy,
)
from jserve_sched.buckets.table import DEFAULT_BLOCK_TOKENS
from jserve_sched.requests.service_class import AdmissionRule
from jserve_tools.load.config import check_ranges, refuse_idle
from jserve_tools.reporting.config import ReportConfig

LIMITS = ("max_num_seqs", "max_num_batched_tokens", "num_kv_tokens", "page_size")
DISTURBANCES = ("noise", "bias", "drift", "stall_share", "send_s", "receive_s")
_ANY = 2**40  # limit of values that only memory limits


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """Requests of a simulation, and their rates.

    Attributes:
      workload: Workload to draw requests from: five of the SlidingServe paper (arxiv,
        mixed, sharegpt), six of jserve's (chat to tight), and five of inference-perf's
        catalogue (interactive_chat to rag). Of the last ten, most have prompts of up
        to 32,000 tokens: give --max_model_len=65536. [default: mixed_v1]
      trace: CSV file to take requests from instead of a workload, with the columns
        arrival_s (seconds), prompt_tokens, output_tokens and, optionally,
        service_class, a name in --service_classes. Or a file of Azure's, BurstGPT's,
        Mooncake's or ShareGPT's, as published.
      poisson: Give a trace's requests Poisson arrivals instead of the trace's.
      num_requests: Number of requests in a run; of a trace the first. [default: 1000,
        or the whole trace]
      service_classes: JSON file with a list of classes. Each has a name, a share (0 to
        1) and any of ttft_s or ttft_slowdown, tbt_s or tbt_step_multiple, and ttlt_s:
        seconds, or multiples of an idle machine's time. If all classes of the workload
        (dialogue, summarisation) are named, they are replaced; otherwise classes are
        drawn by share. Classes that a trace names need no share. [default: those of
        the workload; of a trace a tight and a lax class]
      admission: Rule for requests that cannot be attained, in place of their classes':
        queue, refuse or degrade.
      max_returns: How often the client of a refused request comes back when told.
      one_shot: Make all requests due at time 0, instead of at a rate.
      qps: Rates in requests per second. [default: the trace's mean rate, or 1]
    """

    workload: (
        Literal[
            "arxiv_v1",
            "arxiv_v2",
            "mixed_v1",
            "mixed_v2",
            "sharegpt",
            "chat",
            "documents",
            "heavy_tail",
            "bursts",
            "reasoning_code",
            "tight",
            "interactive_chat",
            "code_generation",
            "deep_research",
            "reasoning",
            "rag",
        ]
        | None
    ) = None
    trace: pathlib.Path | None = None
    poisson: bool = False
    num_requests: int | None = None
    service_classes: pathlib.Path | None = None
    admission: AdmissionRule | None = None
    max_returns: int = 0
    one_shot: bool = False
    qps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.workload is not None and self.trace is not None:
            raise ValueError(f"workload={self.workload} and trace={self.trace}: one of")
        check_readable("trace", self.trace)
        check_readable("service_classes", self.service_classes)
        check_ranges(self, num_requests=(2, _ANY), qps=(1e-6, 1e6))
        check_ranges(self, max_returns=(0, 1000))
        given = [name for name in ("qps", "poisson") if getattr(self, name)]
        if self.one_shot and given:
            raise ValueError(f"one_shot has no rate: leave out {', '.join(given)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """The simulated machine, and the predictions that its policies plan by.

    Attributes:
      cost_model: Machine to simulate: a GPU by name (a100-llama3-8b, h100-llama3-8b,
        rtx4090-llama3.1-8b, rtxpro6000-llama3.1-8b, the last two also with -table), a
        profile of jserve-profile as table:SAMPLES, or arithmetic over a device's
        figures, as roofline:device=h200:model=FOLDER:tensor_parallel=2, with a named
        model or a folder with config.json, for the devices v5e, v6e, l4, a100, h100,
        h200, b200, rtx3090, rtx4090 and rtxpro6000; link_gb_s=... sets the link between
        two.
      buckets: Bucket file (JSON) of the bucket strategies explicit and fitted.
      block_tokens: Tokens in one prefill block; must divide the page size.
      max_model_len: Most tokens of a request, prompt and output together.
      max_num_seqs: Most requests that run at once. [default: the cost model's]
      max_num_batched_tokens: Most token positions in a step. [default: the cost
        model's]
      num_kv_tokens: Tokens that the KV pool holds. [default: the cost model's]
      page_size: Tokens in one KV page. [default: the cost model's]
      lag: Number of steps in flight while the next is planned. 1: a step is planned
        while the previous one runs, as in the server; 0: after that one has ended.
      noise: Standard deviation, 0 to 1, of the logarithm of a step's time about the
        cost model's.
      bias: Largest share, 0 to 1, by which all steps of one program (of one number of
        rows and of blocks) differ from the cost model's, drawn for each program.
      drift: Standard deviation, 0 to 1, of the logarithm of the machine's slowness,
        which changes slowly: in lines between values 30 s apart.
      stall_share: Share of steps, 0 to 1, that take 50 to 200 ms longer.
      send_s: Seconds, 0 to 1, by which each decode lengthens a step, where sending
        tokens takes time from the processor that computes them, as on a CPU.
      receive_s: Seconds, 0 to 1, by which each request that came lengthens the next
        step, where reading it takes time from that processor.
      predictor: Predictor of step times that policies plan by: oracle knows them;
        linear and table are fitted to steps of the cost model.
      enable_prefix_caching: Reuse KV pages of equal prompt prefixes, where the load
        says which prompts have them: workloads with turns, Mooncake's traces.
      declared_max_tokens: Most output tokens (max_tokens) that each request declares,
        as clients of a real server do, limited by the room in the context; it then ends
        earlier, by a stop token. A request that takes more declares its own length. 0:
        every request declares its own length.
      length_estimator: Estimator of output lengths that policies plan by, by name and
        options as in quantile:q=0.75; needs --declared_max_tokens. oracle knows the
        lengths; oracle:error=0.5 and oracle:factor=10 make it wrong. [default:
        max_tokens]
      num_instances: Number of engines, each with its own scheduler, among which the
        load's requests are routed.
      router: Rule that chooses the engine of a request: round_robin;
        least_outstanding; prefix, the engine that had the longest prefix; lmetric,
        tokens to prefill times batch size; slo, the most requests in time.
      instance_speeds: Speed of each engine's machine, as in 1,1,0.5,0.5. [default: 1]
      snapshot_age_s: Age that the router's snapshot of an engine reaches before there
        is a new one, 0 to 60 s.
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
    bias: float = 0.0
    drift: float = 0.0
    stall_share: float = 0.0
    send_s: float = 0.0
    receive_s: float = 0.0
    predictor: Literal["oracle", "linear", "table"] = "oracle"
    enable_prefix_caching: bool = True
    declared_max_tokens: int = 0
    length_estimator: str | None = None
    num_instances: int = 1
    router: Literal["round_robin", "least_outstanding", "prefix", "lmetric", "slo"] = (
        "slo"
    )
    instance_speeds: tuple[float, ...] = ()
    snapshot_age_s: float = 0.0

    def __post_init__(self) -> None:
        # NumPy takes a tenth of a second to import.
        from jserve_sched.requests.output_lengths import make_length_estimator

        check_readable("buckets", self.buckets)
        check_ranges(
            self,
            **dict.fromkeys((*LIMITS, "block_tokens"), (1, _ANY)),
            max_model_len=(2, _ANY),
            declared_max_tokens=(0, _ANY),
            lag=(0, 1),
            **dict.fromkeys(DISTURBANCES, (0.0, 1.0)),
            num_instances=(1, 64),
            instance_speeds=(1e-3, 1e3),
            snapshot_age_s=(0.0, 60.0),
        )
        if len(self.instance_speeds) not in (0, self.num_instances):
            raise ValueError(
                f"instance_speeds has {len(self.instance_speeds)} numbers for "
                f"num_instances={self.num_instances}"
            )
        if self.length_estimator is not None:
            make_length_estimator(self.length_estimator, {})
        if not self.declared_max_tokens:
            reason = "length_estimator needs declared_max_tokens"
            refuse_idle(reason, self, "length_estimator")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Runs that are made, and the requests that they count.

    Attributes:
      policies: Scheduling policies, with options as in sliding:published=on, or
        classes of your own as in my_module.MyPolicy.
      bucket_strategies: Bucket strategies, each combined with every policy; with
        options as in linear:block_gap=4. none pads nothing. explicit and fitted take
        the file of --buckets. fitted without a file is fitted for each policy to this
        load, drawn with a seed of which no run is reported, with as many programs as
        pow2. A trace has the same requests for every seed, so there the fit has seen
        the requests that it is judged by; fit to another part of the trace with
        jserve-fit-buckets to avoid that.
      goodput: Search each policy's goodput instead of running at given rates.
      bound: Add to each run the share of requests that no schedule could exceed, from
        arrivals, lengths and the machine's formula (a minute for 1,000 requests).
      max_violation_share: Share of requests, 0 to 1, that may violate their SLO at the
        goodput. [default: 0.01]
      warmup_share: Share of requests, 0 to 0.9, at the start of a run that are not
        counted. [default: 0.1, or 0 with --one_shot]
      seed: Seed of lengths, arrivals, classes and noise.
      num_seeds: Number of seeds: --seed, --seed + 1, and so on.
      num_processes: Number of processes that share the runs.
      step_log: File that gets the steps of a single run, in the server's format, for
        jserve-fit-buckets.
    """

    policies: tuple[str, ...] = ("fcfs",)
    bucket_strategies: tuple[str, ...] = ("pow2",)
    goodput: bool = False
    bound: bool = False
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
        if self.step_log is not None:
            check_writable("step_log", self.step_log)
        check_ranges(
            self,
            max_violation_share=(0.0, 1.0),
            warmup_share=(0.0, 0.9),
            seed=(0, _ANY),
            num_seeds=(1, _ANY),
            num_processes=(1, _ANY),
        )
        if not self.goodput:
            reason = "max_violation_share needs goodput"
            refuse_idle(reason, self, "max_violation_share")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """All settings of `jserve-simulate`."""

    load: LoadConfig
    machine: MachineConfig
    sweep: SweepConfig
    report: ReportConfig

    def __post_init__(self) -> None:
        load, machine, sweep = self.load, self.machine, self.sweep
        for name in ("qps", "one_shot"):
            if sweep.goodput and getattr(load, name):
                raise ValueError(f"goodput searches the rate: leave out {name}")
        if sweep.bound:
            inexact = {name: getattr(machine, name) for name in DISTURBANCES}
            inexact |= {"goodput": sweep.goodput}
            for name, value in inexact.items():
                if value:
                    raise ValueError(
                        f"bound is of exact times at given rates: leave out {name}"
                    )
            if machine.num_instances > 1:
                raise ValueError(
                    f"bound is of one engine, not num_instances={machine.num_instances}"
                )
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
