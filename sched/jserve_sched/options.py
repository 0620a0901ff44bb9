"""Specs: a name and options on one line, and the object they describe.

pow2                                  by name, with its defaults
linear:block_gap=4                    with options, each a field of its class
sliding:published=on:alpha=0.8        more than one

A class's own fields are its options, so a new field is an option without a line here.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

_PLAIN = (bool, int, float, str)
_SWITCH = {"on": True, "true": True, "off": False, "false": False}


def make_from_spec(
    spec: str,
    classes: Mapping[str, type],
    *,
    kind: str,
    given: Mapping[str, Any] | None = None,
) -> Any:
    """Returns an object of the class that a spec names, with the spec's options.

    Options are the fields of a dataclass that are bool, int, float, str or one of some
    literals; others are set by code alone.

    Args:
      kind: Noun for the classes, for error messages.
      given: Values by field, for fields that no option sets; a class without such a
        field ignores them.

    Raises:
      ValueError: If the name or an option is unknown, or a value is invalid.
    """
    name, *settings = spec.split(":")
    if name not in classes:
        raise ValueError(f"{kind} {name!r} is unknown; known: {sorted(classes)}")
    chosen: Any = classes[name]
    fields = dataclasses.fields(chosen) if dataclasses.is_dataclass(chosen) else ()
    types = typing.get_type_hints(chosen) if fields else {}
    names = [field.name for field in fields if field.init]
    known = [one for one in names if types[one] in _PLAIN or _literals(types[one])]
    options: dict[str, Any] = {}
    for setting in settings:
        option, equals, text = setting.partition("=")
        if option not in known or not equals:
            raise ValueError(
                f"{kind} {name!r} has no option {setting!r}; options are "
                f"{[f'{one}=...' for one in known]}"
            )
        options[option] = _parse(f"{name}:{option}", text, types[option])
    for field, value in (given or {}).items():
        if field in names and field not in known:
            options[field] = value
    return chosen(**options)


def _literals(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def _parse(where: str, text: str, kind: Any) -> Any:
    choices = _SWITCH if kind is bool else {one: one for one in _literals(kind)}
    if choices:
        if text not in choices:
            raise ValueError(f"{where}={text} is not one of {sorted(choices)}")
        return choices[text]
    if kind is str:
        return text
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}={text} is not a number ({kind.__name__})")
    return value
