"""Configuration of `jserve-bench`: the servers, their engines, load and report.

Invalid values, and settings without an effect, are refused when a config is made.
"""

import dataclasses
import json
import urllib.parse
from typing import Any

from jserve.config import EngineConfig, check_predictor
from jserve_sched.buckets.strategies import FROM_FILE
from jserve_tools.load.config import LoadConfig, refuse_idle
from jserve_tools.reporting.config import ReportConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServersConfig:
    """Servers that are measured.

    Attributes:
      url: URL of a running OpenAI-compatible server, such as http://127.0.0.1:8000.
        Without it, a jserve process is started for each policy and bucket strategy.
      policies: Scheduling policies, with one server for each: names with options, or
        classes of your own as in my_module.MyPolicy.
      bucket_strategies: Bucket strategies, each combined with every policy; with
        options as in linear:block_gap=4. [default: explicit with --buckets, else pow2]
      extra_body: JSON object merged into the body of every HTTP request; null removes
        a field, as {"slo": null} does for a server that refuses it. The API key, if
        the server needs one, is read from OPENAI_API_KEY.
    """

    url: str = ""
    policies: tuple[str, ...] = (EngineConfig().policy,)
    bucket_strategies: tuple[str, ...] = ()
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
        if not self.url:
            return
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            address = self.url.removeprefix("//")
            raise ValueError(f"url={self.url} has no scheme: write http://{address}")
        reason = f"url={self.url} is a running server"
        refuse_idle(reason, self, "policies", "bucket_strategies")

    @property
    def extra(self) -> dict[str, Any]:
        """Fields merged into every request's body."""
        fields: dict[str, Any] = json.loads(self.extra_body)
        return fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """The whole benchmark.

    Attributes:
      load: Requests that every server gets.
      servers: Servers that are measured.
      engine: Settings of engines that the benchmark starts, except policy and bucket
        strategy.
      report: Settings of the report.
    """

    load: LoadConfig = dataclasses.field(default_factory=LoadConfig)
    servers: ServersConfig = dataclasses.field(default_factory=ServersConfig)
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    report: ReportConfig = dataclasses.field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        if self.servers.url:
            refuse_idle(f"url={self.servers.url} is a running server", self.engine)
            return
        engine, strategies = self.engine, self.servers.bucket_strategies
        check_predictor(engine.predictor)
        if engine.buckets and strategies and not set(FROM_FILE) & set(strategies):
            raise ValueError(
                f"buckets={engine.buckets} is for bucket strategies "
                f"{' and '.join(FROM_FILE)}, not {', '.join(strategies)}"
            )
        num_engines = len(self.engines())  # refuses invalid bucket strategies
        if engine.step_log is not None and num_engines > 1:
            raise ValueError(
                f"step_log={engine.step_log} is one file for {num_engines} engines: "
                "record one policy with one bucket strategy"
            )

    def engines(self) -> list[EngineConfig]:
        """Returns the config of each engine to start; none if a URL is given."""
        if self.servers.url:
            return []
        # A run must not find another's prompts in the cache.
        shared = dataclasses.replace(self.engine, enable_prefix_caching=False)
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
