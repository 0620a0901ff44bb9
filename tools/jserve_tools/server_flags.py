"""Flags that say which servers a benchmark runs against, and how it talks to them.

The one idea: an engine of our own takes every flag of jserve, and one more for each
thing that is compared: policies and bucket strategies.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from absl import flags

from jserve.config import EngineConfig
from jserve.config_flags import define_engine_flags
from jserve_sched.bucket_strategies import FROM_FILE, make_strategy
from jserve_tools.http_client import APIS, RequestForm
from jserve_tools.targets import Servers

# absl gives a flag to the module that calls DEFINE_*; this one passes it on.
flags.disclaim_key_flags()

# Given by flags of other names, or not by anyone.
_NO_FLAGS = (
    *("policy", "bucket_strategy", "buckets", "seed"),
    *("enable_prefix_caching", "capture_logits"),
)


def define_server_flags() -> Callable[[], Servers]:
    """Defines the flags; returns their reader, which raises for a bad value."""
    url = flags.DEFINE_string(
        "url",
        None,
        "A running OpenAI-compatible server, such as http://127.0.0.1:8000.",
    )
    launch = flags.DEFINE_bool(
        "launch",
        False,
        "Start a jserve process for each policy and talk HTTP to it; otherwise, and "
        "without --url, engines run in this process.",
    )
    start_timeout_s = flags.DEFINE_float(
        "start_timeout_s",
        600.0,
        "Seconds a server may take to be warm.",
        lower_bound=1.0,
    )
    measure_warm_start = flags.DEFINE_bool(
        "measure_warm_start",
        False,
        "Start the engine of each bucket strategy twice, with an empty compile cache "
        "of its own and with what that start left there, and report both.",
    )
    profile_host = flags.DEFINE_bool(
        "profile_host",
        False,
        "Break the median step down into its parts, in ms. Engines of our own run "
        "without overlap then: only so can the time of Python and that of XLA be told "
        "apart.",
    )
    read_configs = _define_engines(profile_host)
    read_form = _define_requests()

    def read() -> Servers:
        return Servers(
            url=url.value or "",
            is_launched=launch.value,
            configs=read_configs(),
            form=read_form(),
            start_timeout_s=start_timeout_s.value,
            profiles_host=profile_host.value,
            measures_warm_start=measure_warm_start.value,
        )

    return read


def _define_engines(
    profile_host: "flags.FlagHolder[bool]",
) -> Callable[[], list[EngineConfig]]:
    """Defines what engines of our own are told; returns the reader."""
    read_config = define_engine_flags(exclude=_NO_FLAGS)
    policies = flags.DEFINE_list(
        "policies", [EngineConfig().policy], "Scheduling policies, one server each."
    )
    strategies = flags.DEFINE_list(
        "bucket_strategies",
        None,
        "Bucket strategies, each with every policy, with options as in "
        "linear:block_gap=4. [default: explicit with buckets, else pow2]",
    )
    buckets = flags.DEFINE_string(
        "buckets",
        None,
        "Bucket file (JSON) of bucket strategies explicit and fitted; "
        "jserve-fit-buckets writes one.",
    )

    def read() -> list[EngineConfig]:
        chosen = strategies.value or [""]
        if buckets.value is not None and not {"", *FROM_FILE} & set(chosen):
            raise ValueError(
                f"buckets={buckets.value} is for bucket strategies "
                f"{' and '.join(FROM_FILE)}, not {', '.join(chosen)}"
            )
        # Off, lest one run finds another's prompts in the cache.
        overrides: dict[str, Any] = {"enable_prefix_caching": False}
        if profile_host.value:
            overlap = flags.FLAGS["enable_overlap"]
            if overlap.present and overlap.value:
                raise ValueError("profile_host needs noenable_overlap: see its help")
            overrides["enable_overlap"] = False
        configs = [
            read_config(policy=policy, **_shapes(strategy, buckets.value), **overrides)
            for strategy in chosen
            for policy in policies.value
        ]
        if len(configs) > 1 and configs[0].step_log is not None:
            raise ValueError(
                f"step_log={configs[0].step_log} is one file for {len(configs)} "
                "engines: record one policy with one bucket strategy"
            )
        return configs

    return read


def _shapes(strategy: str, buckets: str | None) -> dict[str, Any]:
    """Returns what an engine is told of its buckets; "" leaves the choice to it."""
    if strategy not in ("", *FROM_FILE):
        make_strategy(strategy)  # a wrong name or option is refused now
        return {"bucket_strategy": strategy}
    if strategy and buckets is None:
        raise ValueError(
            f"bucket strategy {strategy!r} needs a bucket file, --buckets=FILE. To "
            "write one: jserve --step_log=steps.jsonl, with traffic, then "
            "jserve-fit-buckets --step_log=steps.jsonl --output=FILE"
        )
    path = None if buckets is None else pathlib.Path(buckets).expanduser()
    return {"bucket_strategy": strategy, "buckets": path}


def _define_requests() -> Callable[[], RequestForm]:
    """Defines how requests are written down; returns the reader."""
    api = flags.DEFINE_enum(
        "api",
        "completions",
        APIS,
        "completions sends token ids; chat sends about as many words, for servers that "
        "take no ids.",
    )
    extra_body = flags.DEFINE_string(
        "extra_body",
        "{}",
        "JSON object merged into every request's body; null removes a field, such as "
        'one that a server refuses: {"slo": null}.',
    )
    api_key_file = flags.DEFINE_string(
        "api_key_file", None, "File whose first line is sent as the API key."
    )

    def read() -> RequestForm:
        try:
            extra: Any = json.loads(extra_body.value)
        except json.JSONDecodeError as error:
            raise ValueError(f"extra_body is not JSON: {error}") from None
        if not isinstance(extra, dict):
            raise ValueError(f"extra_body={extra_body.value} is not a JSON object")
        key = ""
        if api_key_file.value is not None:
            path = pathlib.Path(api_key_file.value).expanduser()
            lines = path.read_text().split()
            if not lines:
                raise ValueError(f"api_key_file={api_key_file.value} is empty")
            key = lines[0]
        return RequestForm(api=api.value, extra=extra, api_key=key)

    return read
