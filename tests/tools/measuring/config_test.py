"""What a benchmark refuses before any work, and what it makes of its flags."""

import pathlib
from typing import Any

import pytest

from jserve.config import EngineConfig
from jserve_tools.load.config import LoadConfig, ReplayConfig
from jserve_tools.measuring.config import BenchConfig, ServersConfig
from tests import TESTS

BUCKETS = TESTS / "four_programs.json"
RUNNING = ServersConfig(url="http://x")
TWO = ServersConfig(policies=("fcfs", "edf"))


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (ReplayConfig, {"load": (-1.0,)}, "load=-1.0 is not in 1e-06"),
        (ReplayConfig, {"load": (1.0,), "qps": (2.0,)}, "leave out --load=1.0"),
        (ReplayConfig, {"qps": (1.0,), "capacity_s": 2.0}, "leave out --capacity_s=2"),
        (ServersConfig, {"extra_body": "[]"}, "extra_body=[] is not a JSON object"),
        (ServersConfig, {"extra_body": "{"}, "extra_body is not JSON"),
        (ServersConfig, {"policies": ("edff",)}, "'edff' is unknown; known: ['ann"),
        (ServersConfig, {"url": "127.0.0.1:1"}, "no scheme: write http://127.0.0.1:1"),
        (
            ServersConfig,
            {"url": "http://x", "policies": ("fcfs",)},
            "http://x is a running server: leave out --policies=fcfs",
        ),
        (
            BenchConfig,
            {"servers": RUNNING, "engine": EngineConfig(kv_cache_bytes=9)},
            "http://x is a running server: leave out --kv_cache_bytes=9",
        ),
        (
            BenchConfig,
            {"engine": EngineConfig(predictor="tabel")},
            "predictor=tabel is not one of table, auto, linear, and not the folder",
        ),
        (
            BenchConfig,
            {"servers": ServersConfig(bucket_strategies=("pow2", "fitted"))},
            "a bucket file goes with explicit and fitted, which need one",
        ),
        (
            BenchConfig,
            {
                "servers": ServersConfig(bucket_strategies=("pow2",)),
                "engine": EngineConfig(buckets=BUCKETS),
            },
            "is for bucket strategies explicit and fitted, not pow2",
        ),
        (
            ReplayConfig,
            {"trace": pathlib.Path("/none.csv")},
            "trace='/none.csv' is not a file that can be read",
        ),
        (
            BenchConfig,
            {"servers": TWO, "engine": EngineConfig(step_log=pathlib.Path("s"))},
            "step_log=s is one file for 2 engines",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_name(
    config: type, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        config(**fields)
    assert message in str(caught.value)


def test_rates_are_shares_of_the_capacity_unless_others_are_given() -> None:
    assert ReplayConfig().loads == (0.9,)
    assert LoadConfig(replay=ReplayConfig(load=(0.5, 1.0))).num_runs == 2
    assert LoadConfig(replay=ReplayConfig(qps=(1.0, 2.0, 3.0))).num_runs == 3


def test_each_policy_gets_each_bucket_strategy() -> None:
    servers = ServersConfig(
        policies=("fcfs", "edf"),
        bucket_strategies=("pow2", "fitted"),
    )
    config = BenchConfig(servers=servers, engine=EngineConfig(buckets=BUCKETS))
    engines = config.engines()
    assert [(one.policy, one.bucket_strategy, one.buckets) for one in engines] == [
        ("fcfs", "pow2", None),
        ("edf", "pow2", None),
        ("fcfs", "fitted", BUCKETS),
        ("edf", "fitted", BUCKETS),
    ]
    assert not any(one.enable_prefix_caching for one in engines)
    assert BenchConfig(servers=RUNNING).engines() == []
    assert BenchConfig().engines()[0].bucket_strategy == "pow2"
