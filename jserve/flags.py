"""Flags for a config dataclass, so that every default is written once.

A flag has the name, type and default of a field, and its help is the field's entry
under `Attributes:`. Invalid values and combinations are refused by the dataclass, in
`__post_init__`, so that they are refused wherever a config is made.
"""

import csv
import dataclasses
import inspect
import pathlib
import re
import types
import typing
from collections.abc import Callable, Collection
from typing import Any

from absl import flags

from jserve.config import EngineConfig, setting_text

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT]i?)?B?)\s*", re.IGNORECASE)
_UNITS = {"": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", 1)
    for suffix, base in (("", 1000), ("I", 1024))
}

Config = typing.TypeVar("Config")


def parse_bytes(text: str) -> int:
    """Returns a size: bytes, or a number with a unit such as 8GiB, 512MiB or 4GB.

    Raises:
      ValueError: If the text is neither.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text} is not a size such as 8GiB, 512MiB or 1073741824")
    size = float(match[1]) * _UNITS[(match[2] or "").upper()]
    return int(match[1]) if match[1].isdigit() and not match[2] else int(size)


class _Parser(flags.ArgumentParser[Any]):
    """Converts the text on the command line to a field's value."""

    def __init__(self, convert: Callable[[str], Any], noun: str):
        self._convert = convert
        self.syntactic_help = noun

    def parse(self, argument: Any) -> Any:
        """Returns the value of a text; a default, which is a value, stays."""
        return self._convert(argument) if isinstance(argument, str) else argument


class _Serializer(flags.ArgumentSerializer[Any]):
    """Converts a value to its text on the command line."""

    def serialize(self, value: Any) -> str:
        """Returns the text that is parsed to `value`."""
        if isinstance(value, tuple):
            return ",".join(map(str, value))
        return str(value)


def _path(text: str) -> pathlib.Path:
    if not text:
        raise ValueError("a path is needed")
    return pathlib.Path(text).expanduser()


def _parser(name: str, kind: Any) -> flags.ArgumentParser[Any]:
    """Returns the parser of a field, by its name and type."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        (kind,) = (one for one in typing.get_args(kind) if one is not type(None))
        if kind is pathlib.Path:
            return _Parser(lambda text: _path(text) if text else None, "a path")
        return _parser(name, kind)
    if origin is typing.Literal:
        return flags.EnumParser(list(typing.get_args(kind)))
    if origin is tuple:
        one = _parser(name, typing.get_args(kind)[0])

        def split(text: str) -> tuple[Any, ...]:
            (texts,) = csv.reader([text], strict=True) if text.strip() else ([],)
            return tuple(one.parse(item.strip()) for item in texts)

        return _Parser(split, "a comma separated list")
    if kind is int and name.endswith("_bytes"):
        return _Parser(parse_bytes, "bytes, or a size such as 8GiB")
    if kind is int:
        return flags.IntegerParser()
    if kind is float:
        return flags.FloatParser()
    if kind is pathlib.Path:
        return _Parser(_path, "a path")
    assert kind is str, f"{name}: no flag for {kind}"
    return flags.ArgumentParser()


def _flag(name: str, kind: Any, default: Any, text: str) -> flags.Flag[Any]:
    if kind is bool:
        return flags.BooleanFlag(name, default, text)
    parser = _parser(name, kind)
    if isinstance(parser, flags.EnumParser):
        return flags.EnumFlag(name, default, text, parser.enum_values)
    return flags.Flag(parser, _Serializer(), name, default, text)


def field_help(config_class: type) -> dict[str, str]:
    """Returns the entries under `Attributes:` of a dataclass, by field."""
    text = inspect.cleandoc(config_class.__doc__ or "").partition("Attributes:")[2]
    entries = re.findall(r"^  (\w+): (.*(?:\n {4}.*)*)", text, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def define_config_flags(
    config_class: type[Config],
    *,
    group: str,
    exclude: Collection[str] = (),
    flag_values: flags.FlagValues = flags.FLAGS,
) -> Callable[..., Config]:
    """Defines one flag for each field of a dataclass whose fields all have defaults.

    Fields are booleans, numbers, strings, paths, `Literal`s of strings, tuples of any
    of these, or one of these and None. A field whose name ends in `_bytes` takes sizes
    such as 8GiB.

    Args:
      group: Heading of these flags in `--help`. A class may have several headings: its
        attribute `flag_groups` maps the first field under each to the heading. Its
        `flag_defaults` has the text for defaults that say nothing by themselves.
      exclude: Fields that get no flag; they keep their defaults, or are given to the
        reader.

    Returns:
      A reader to call after flags are parsed: `read(**overrides)` builds the
      config from the flags and the overrides, and raises the ValueError of the
      dataclass for a value out of range.
    """
    assert dataclasses.is_dataclass(config_class)
    kinds = typing.get_type_hints(config_class)
    texts = field_help(config_class)
    headings = getattr(config_class, "flag_groups", {})
    names: list[str] = []
    for field in dataclasses.fields(config_class):
        name = field.name
        group = headings.get(name, group)
        if name in exclude:
            continue
        names.append(name)
        flag = _flag(name, kinds[name], field.default, texts.get(name, name))
        shown = getattr(config_class, "flag_defaults", {}).get(name)
        if shown or name.endswith("_bytes"):
            flag.default_as_str = shown or setting_text(name, field.default)
        flags.DEFINE_flag(flag, flag_values, module_name=group)

    def read(**overrides: Any) -> Config:
        values = {name: flag_values[name].value for name in names}
        return config_class(**(values | overrides))

    return read


def define_engine_flags(
    *, exclude: Collection[str] = ("capture_logits",)
) -> Callable[..., EngineConfig]:
    """Defines a flag for each field of EngineConfig, except those in `exclude`."""
    return define_config_flags(EngineConfig, group="Engine", exclude=exclude)


def config_arguments(config: Any) -> list[str]:
    """Returns command-line arguments by which another program gets this config."""
    arguments = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default:
            continue
        if isinstance(value, bool):
            arguments.append(f"--{'' if value else 'no'}{field.name}")
        else:
            arguments.append(f"--{field.name}={_Serializer().serialize(value)}")
    return arguments
