"""Flags for a config dataclass, so that no program spells a default again.

The one idea: the dataclass is the source. A flag's name, type and default are
its field's, and its help is that field's entry under `Attributes:`. The module
that calls `define_engine_flags` owns the flags, and `--help` lists them there.
"""

import dataclasses
import inspect
import pathlib
import re
import typing
from collections.abc import Callable, Collection
from typing import Any

from absl import flags

from jserve.config import EngineConfig

# absl gives a flag to the module that calls DEFINE_*; this one passes it on.
flags.disclaim_key_flags()

_DEFINE: dict[Any, Callable[..., Any]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    pathlib.Path | None: flags.DEFINE_string,
}

Config = typing.TypeVar("Config")


def field_help(config_class: type) -> dict[str, str]:
    """Returns what a dataclass's docstring says of each field, by name."""
    lines = inspect.cleandoc(config_class.__doc__ or "").splitlines()
    entries: dict[str, str] = {}
    name = ""
    for line in lines[
        lines.index("Attributes:") + 1 if "Attributes:" in lines else 0 :
    ]:
        entry = re.match(r"  (\w+): (.*)", line)
        if entry:
            name = entry[1]
            entries[name] = entry[2]
        elif name and line.startswith("    "):
            entries[name] += " " + line.strip()
        else:
            name = ""
    return {name: text[:1].upper() + text[1:] for name, text in entries.items()}


def define_config_flags(
    config_class: type[Config], *, exclude: Collection[str] = ()
) -> Callable[..., Config]:
    """Defines one flag for each field of a dataclass whose fields all have defaults.

    Args:
      config_class: a frozen dataclass of booleans, numbers, strings and paths.
      exclude: fields that get no flag; they keep their defaults, or are given to
        the reader.

    Returns:
      A reader to call after flags are parsed: `read(**overrides)` builds the
      config from the flags and the overrides, and raises the ValueError of the
      dataclass for a value out of range.
    """
    assert dataclasses.is_dataclass(config_class)
    types = typing.get_type_hints(config_class)
    texts = field_help(config_class)
    holders: dict[str, flags.FlagHolder[Any]] = {}
    for field in dataclasses.fields(config_class):
        if field.name in exclude:
            continue
        default = field.default
        if isinstance(default, pathlib.Path):
            default = str(default)
        holders[field.name] = _DEFINE[types[field.name]](
            field.name, default, texts.get(field.name, field.name)
        )

    def read(**overrides: Any) -> Config:
        values: dict[str, Any] = {}
        for name, holder in holders.items():
            value = holder.value
            if types[name] == pathlib.Path | None:
                value = pathlib.Path(value).expanduser() if value else None
            values[name] = value
        return config_class(**{**values, **overrides})

    return read


def define_engine_flags(
    *, exclude: Collection[str] = ("capture_logits",)
) -> Callable[..., EngineConfig]:
    """Defines a flag for each field of EngineConfig; returns their reader.

    Args:
      exclude: fields that get no flag (tests alone capture logits).
    """
    return define_config_flags(EngineConfig, exclude=exclude)


def engine_arguments(config: EngineConfig) -> list[str]:
    """Returns the command-line arguments that give another program this config."""
    default = EngineConfig()
    arguments = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == getattr(default, field.name):
            continue
        if isinstance(value, bool):
            arguments.append(f"--{'' if value else 'no'}{field.name}")
        else:
            arguments.append(f"--{field.name}={value}")
    return arguments
