import dataclasses
import pathlib

import pytest
from absl import flags

from jserve import engine_flags
from jserve.config import EngineConfig, ServerConfig
from jserve.engine_flags import (
    define_config_flags,
    define_engine_flags,
    engine_arguments,
    field_help,
)


@pytest.fixture
def flag_values(monkeypatch: pytest.MonkeyPatch) -> flags.FlagValues:
    """Flags of this test alone: a program may define the same ones."""
    values = flags.FlagValues()

    def apart(define):
        return lambda *args: define(*args, flag_values=values)

    for kind, define in engine_flags._DEFINE.items():
        monkeypatch.setitem(engine_flags._DEFINE, kind, apart(define))
    return values


def test_every_field_is_a_flag_with_its_default_and_help(flag_values) -> None:
    read = define_engine_flags()
    flag_values(["program"])
    assert read() == EngineConfig()
    names = {field.name for field in dataclasses.fields(EngineConfig)}
    assert names - {"capture_logits"} <= set(flag_values)
    assert "capture_logits" not in flag_values
    assert flag_values["page_size"].help == "Tokens in one KV page."
    texts = field_help(EngineConfig) | field_help(ServerConfig)
    for config in (EngineConfig, ServerConfig):
        for field in dataclasses.fields(config):
            assert texts[field.name]


def test_flags_and_overrides_make_the_config(flag_values) -> None:
    read = define_engine_flags(exclude=("policy", "capture_logits"))
    flag_values(["program", "--noenable_overlap", "--buckets=b.json", "--seed=4"])
    config = read(policy="fcfs")
    assert config == EngineConfig(
        policy="fcfs", enable_overlap=False, buckets=pathlib.Path("b.json"), seed=4
    )


def test_arguments_carry_a_config_to_another_program(flag_values) -> None:
    config = EngineConfig(
        policy="fcfs", enable_prefix_caching=False, kv_cache_bytes=2**20
    )
    arguments = engine_arguments(config)
    assert arguments == [
        "--policy=fcfs",
        "--kv_cache_bytes=1048576",
        "--noenable_prefix_caching",
    ]
    read = define_engine_flags()
    flag_values(["program", *arguments])
    assert read() == config
    assert engine_arguments(EngineConfig()) == []


def test_a_value_out_of_range_is_the_configs_to_refuse(flag_values) -> None:
    read = define_config_flags(ServerConfig)
    flag_values(["program", "--port=70000"])
    with pytest.raises(ValueError, match=r"port=70000 is not in 0\.\.65535"):
        read()
