"""The settings of a benchmark: which servers, which requests, at which rate.

Invalid values, and settings without an effect in the chosen mode, are refused when a
config is made, before any work.
"""

import dataclasses
import json
import pathlib
import urllib.parse
from typing import Any, Literal

from jserve.config import EngineConfig, check_range, check_readable
from jserve.flags import config_arguments
from jserve_sched.buckets.strategies import FROM_FILE, make_strategy
from jserve_tools.load.workload_trace import DEFAULT_TRACE
from jserve_tools.reporting.config import ReportConfig

_HOW_TO_FIT = (
    "to write one: jserve --step_log=steps.jsonl, with traffic, then "
    "jserve-fit-buckets --step_log=steps.jsonl --output=FILE"
)


def _refuse(reason: str, config: Any, flags: tuple[str, ...] = ("",)) -> None:
    """Refuses settings without an effect: those whose names begin with `flags`."""
    idle = [
        one
        for one in config_arguments(config)
        if one.removeprefix("--").startswith(flags)
    ]
    if idle:
        raise ValueError(f"{reason}: leave out {', '.join(idle)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Replay of a trace, its arrival times scaled to one or several rates.

    Attributes:
      trace: CSV file with the columns arrival_s (seconds), prompt_tokens,
        output_tokens and, optionally, service_class, a name in --service_classes.
      length_scale: Factor on the trace's prompt and output lengths.
      load: Rates as shares of the measured capacity. [default: 0.9, unless another
        flag gives the rate]
      qps: Rates in requests per second.
      rate_scale: Rate as a multiple of the trace's.
      service_classes: JSON file with a list of classes. Each has a name, a share (0 to
        1) and any of ttft_s or ttft_slowdown, tbt_s or tbt_step_multiple, and ttlt_s:
        seconds, or multiples of an idle server's time. Classes that the trace names
        need no share. [default: a tight and a lax class]
      capacity_s: Seconds for which capacity is measured, once the server is full.
    """

    trace: pathlib.Path = DEFAULT_TRACE
    length_scale: float = 1.0
    load: tuple[float, ...] = ()
    qps: tuple[float, ...] = ()
    rate_scale: float | None = None
    service_classes: pathlib.Path | None = None
    capacity_s: float = 10.0

    def __post_init__(self) -> None:
        check_readable("trace", self.trace)
        check_readable("service_classes", self.service_classes)
        check_range("length_scale", self.length_scale, 1e-4, 1e4)
        check_range("capacity_s", self.capacity_s, 1.0, 3600.0)
        scales = () if self.rate_scale is None else (self.rate_scale,)
        rates = {"load": self.load, "qps": self.qps, "rate_scale": scales}
        for name, values in rates.items():
            for rate in values:
                check_range(name, rate, 1e-6, 1e6)
        given = [name for name in rates if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(given)}: each sets the rate")
        if given not in ([], ["load"]):
            _refuse(f"{given[0]} needs no capacity", self, ("capacity_",))

    @property
    def loads(self) -> tuple[float, ...]:
        """Rates as shares of the capacity; empty where rates need none."""
        has_rate = self.qps or self.rate_scale is not None
        return () if has_rate else self.load or (0.9,)

    @property
    def num_runs(self) -> int:
        """Number of runs against each server."""
        return len(self.loads) + len(self.qps) or 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClosedConfig:
    """Closed loop: a client sends its next request, of fixed length, when one ends.

    Attributes:
      clients: Numbers of clients, with one run for each.
      prompt_tokens: Prompt tokens of a request.
      output_tokens: Output tokens of a request.
    """

    clients: tuple[int, ...] = (32,)
    prompt_tokens: int = 128
    output_tokens: int = 64

    def __post_init__(self) -> None:
        if not self.clients:
            raise ValueError("clients is empty: name at least one number")
        for clients in self.clients:
            check_range("clients", clients, 1, 4096)
        check_range("prompt_tokens", self.prompt_tokens, 1, 2**24)
        check_range("output_tokens", self.output_tokens, 1, 2**24)

    @property
    def num_runs(self) -> int:
        """Number of runs against each server."""
        return len(self.clients)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServersConfig:
    """Which servers are measured.

    Attributes:
      url: A running OpenAI-compatible server, such as http://127.0.0.1:8000.
      launch: Start a jserve process for each policy and talk HTTP to it; otherwise,
        and without --url, engines run in this process.
      policies: Scheduling policies as of a server's --policy, one server each.
      bucket_strategies: Bucket strategies, each with every policy, with options as in
        linear:block_gap=4. [default: explicit with --buckets, else pow2]
      profile_host: Break the median step down into its parts, in ms. Engines of our
        own run without overlap then: only so can the time of Python and that of XLA be
        told apart.
      extra_body: JSON object merged into every HTTP request's body; null removes a
        field, such as one that a server refuses: {"slo": null}. The key that a server
        asks for is read from OPENAI_API_KEY.
    """

    url: str = ""
    launch: bool = False
    policies: tuple[str, ...] = (EngineConfig().policy,)
    bucket_strategies: tuple[str, ...] = ()
    profile_host: bool = False
    extra_body: str = "{}"

    def __post_init__(self) -> None:
        from jserve_sched.policies.registry import make_policy  # imports NumPy

        try:
            is_object = isinstance(json.loads(self.extra_body), dict)
        except ValueError as error:
            raise ValueError(f"extra_body is not JSON: {error}") from None
        if not is_object:
            raise ValueError(f"extra_body={self.extra_body} is not a JSON object")
        if not self.policies:
            raise ValueError("policies is empty: name at least one")
        for policy in self.policies:
            make_policy(policy)
        for strategy in self.bucket_strategies:
            if strategy not in FROM_FILE:
                make_strategy(strategy)
        if not self.url:
            return
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            address = self.url.removeprefix("//")
            raise ValueError(f"url={self.url} has no scheme: write http://{address}")
        idle = ("launch", "policies", "bucket_strategies")
        _refuse(f"url={self.url} is a running server", self, idle)

    @property
    def extra(self) -> dict[str, Any]:
        """Fields merged into every request's body."""
        fields: dict[str, Any] = json.loads(self.extra_body)
        return fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """The whole benchmark.

    Attributes:
      mode: replay: a trace at its own times, stretched to a rate. closed: --clients
        that each send the next request of --prompt_tokens and --output_tokens when
        one ends.
      num_requests: Requests of a run: the first of the trace. 0 takes 200, or all of
        a shorter trace, and 8 a client in a closed loop.
      seed: Decides classes, prompts and sampling.
      replay: For mode replay.
      closed: For mode closed.
      servers: Which servers are measured.
      engine: Settings of the engines, but for policy and bucket strategy.
      report: Where the report goes.
    """

    mode: Literal["replay", "closed"] = "replay"
    num_requests: int = 0
    seed: int = 0
    replay: ReplayConfig = dataclasses.field(default_factory=ReplayConfig)
    closed: ClosedConfig = dataclasses.field(default_factory=ClosedConfig)
    servers: ServersConfig = dataclasses.field(default_factory=ServersConfig)
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    report: ReportConfig = dataclasses.field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        check_range("num_requests", self.num_requests, 0, 2**24)
        check_range("seed", self.seed, 0, 2**32 - 1)
        if self.mode == "closed":
            _refuse("mode=closed replays no trace", self.replay)
        else:
            _refuse("mode=replay has the lengths of a trace", self.closed)
        if self.servers.url:
            _refuse(f"url={self.servers.url} is a running server", self.engine)
            return
        if not self.servers.launch:
            reason = "engines in this process take no HTTP requests"
            _refuse(reason, self.servers, ("extra_body",))
        self._check_engines()

    def _check_engines(self) -> None:
        engine, strategies = self.engine, self.servers.bucket_strategies
        predictor = pathlib.Path(engine.predictor).expanduser()
        if engine.predictor not in ("table", "linear") and not predictor.is_dir():
            raise ValueError(
                f"predictor={engine.predictor} is not one of table, linear, and not "
                "the folder of a trained one"
            )
        needs_file = [one for one in strategies if one in FROM_FILE]
        if engine.buckets is None:
            if needs_file:
                raise ValueError(
                    f"bucket strategy {needs_file[0]!r} needs a bucket file, "
                    f"--buckets=FILE; {_HOW_TO_FIT}"
                )
        elif strategies and not needs_file:
            raise ValueError(
                f"buckets={engine.buckets} is for bucket strategies "
                f"{' and '.join(FROM_FILE)}, not {', '.join(strategies)}"
            )
        if engine.step_log is not None and len(self.engines()) > 1:
            raise ValueError(
                f"step_log={engine.step_log} is one file for {len(self.engines())} "
                "engines: record one policy with one bucket strategy"
            )

    @property
    def num_runs(self) -> int:
        """Number of runs against each server."""
        return (self.replay if self.mode == "replay" else self.closed).num_runs

    def engines(self) -> list[EngineConfig]:
        """Returns the config of each engine to start; none with a URL."""
        if self.servers.url:
            return []
        # A run must not find another's prompts in the cache.
        shared = dataclasses.replace(
            self.engine,
            enable_prefix_caching=False,
            enable_overlap=self.engine.enable_overlap and not self.servers.profile_host,
        )
        return [
            dataclasses.replace(
                shared,
                policy=policy,
                bucket_strategy=strategy,
                buckets=shared.buckets if strategy in FROM_FILE else None,
            )
            for strategy in self.servers.bucket_strategies or (shared.strategy,)
            for policy in self.servers.policies
        ]
