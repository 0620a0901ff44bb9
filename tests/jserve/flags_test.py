import dataclasses
import pathlib
from typing import Any, Literal

import pytest
from absl import flags

from jserve.config import EngineConfig
from jserve.flags import (
    config_arguments,
    define_config_flags,
    field_help,
    parse_bytes,
)
from jserve.server_config import ServerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """Every kind of field.

    Attributes:
      fast: Whether it is fast.
      count: Of things.
      pool_bytes: Size of the pool.
      share: A share, on
        two lines.
      name: A name.
      mode: What to do.
      rates: Rates per second.
      files: Files to read.
      limit: A limit, if any.
    """

    fast: bool = True
    count: int = 3
    pool_bytes: int = 2**20
    share: float = 0.5
    name: str = ""
    mode: Literal["open", "closed"] = "open"
    rates: tuple[float, ...] = ()
    files: tuple[pathlib.Path, ...] = (pathlib.Path("a"),)
    limit: int | None = None


def parse(config_class: type[Any], *arguments: str, **overrides: Any) -> Any:
    values = flags.FlagValues()
    read = define_config_flags(config_class, group="Test", flag_values=values)
    values(["program", *arguments])
    return read(**overrides)


def test_every_field_is_a_flag_with_its_default_and_help() -> None:
    assert parse(Example) == Example()
    values = flags.FlagValues()
    define_config_flags(Example, group="Test", exclude=("count",), flag_values=values)
    assert "count" not in values
    assert values["share"].help == "A share, on two lines."
    assert "Test:" in values.get_help()
    for config in (EngineConfig, ServerConfig):
        assert parse(config) == config()
        texts = field_help(config)
        assert all(texts[field.name] for field in dataclasses.fields(config))


def test_flags_stand_under_the_headings_of_their_class() -> None:
    values = flags.FlagValues()
    define_config_flags(
        EngineConfig, group="Engine", exclude=("model",), flag_values=values
    )
    groups = {
        name: [flag.name for flag in found]
        for name, found in values.flags_by_module_dict().items()
    }
    assert list(groups) == [
        "Model",
        "Scheduling",
        "Buckets and compilation",
        "Memory",
        "Recording",
    ]
    assert groups["Model"] == [
        *("seed", "dtype", "weights", "kv_dtype", "max_model_len", "attention"),
        "tensor_parallel",
    ]
    assert "page_size" in groups["Memory"]
    shown = str(values["kv_cache_bytes"].default_as_str)
    assert shown == "by device: 512MiB on CPU, 0 on GPU and TPU"
    assert values["step_log_max_bytes"].default_as_str == "64MiB"


def test_arguments_carry_a_config_to_another_program() -> None:
    config = Example(
        fast=False,
        pool_bytes=3,
        mode="closed",
        rates=(1.0, 2.5),
        files=(pathlib.Path("b"), pathlib.Path("c")),
        limit=4,
    )
    arguments = config_arguments(config)
    assert arguments[:2] == ["--nofast", "--pool_bytes=3"]
    assert parse(Example, *arguments) == config
    assert config_arguments(Example()) == []
    assert parse(Example, "--count=9", name="given") == Example(count=9, name="given")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("7", 7),
        ("8GiB", 8 * 2**30),
        ("1.5KiB", 1536),
        ("4 GB", 4 * 10**9),
        ("2k", 2000),
    ],
)
def test_sizes_take_units(text: str, size: int) -> None:
    assert parse_bytes(text) == size
    assert parse(Example, f"--pool_bytes={text}").pool_bytes == size


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--pool_bytes=much", "much is not a size such as 8GiB"),
        ("--mode=ajar", "should be one of <open|closed>"),
        ("--rates=1,fast", "fast"),
        ("--count=2.5", "2.5"),
        ("--files=a,", "a path is needed"),
    ],
)
def test_what_is_not_a_value_is_refused_by_name(argument: str, message: str) -> None:
    with pytest.raises(flags.IllegalFlagValueError, match=message) as caught:
        parse(Example, argument)
    assert argument.split("=")[0].lstrip("-") in str(caught.value)
