"""Scheduling policies; a flag picks one by name, and may set its options.

fcfs                                  by name, with its defaults
sliding:constructor=off:alpha=0.8     with options, each a field of its class
"""

import dataclasses
import math
import typing
from typing import Any

from jserve_sched.policies.base import Policy
from jserve_sched.policies.edf import EarliestDeadlineFirst
from jserve_sched.policies.fcfs import FirstComeFirstServed
from jserve_sched.policies.qoserve import QoServe
from jserve_sched.policies.sjf import ShortestJobFirst
from jserve_sched.policies.sliding import SlidingServe

POLICIES: dict[str, type[Policy]] = {
    "fcfs": FirstComeFirstServed,
    "edf": EarliestDeadlineFirst,
    "sjf": ShortestJobFirst,
    "qoserve": QoServe,
    "sliding": SlidingServe,
}

_SWITCH = {"on": True, "true": True, "off": False, "false": False}


def make_policy(spec: str) -> Policy:
    """Returns the policy that `name:option=value:...` describes.

    Raises:
      ValueError: if the policy or an option is unknown, or a value is no good.
    """
    name, *settings = spec.split(":")
    if name not in POLICIES:
        raise ValueError(f"policy {name!r} is unknown; known: {sorted(POLICIES)}")
    policy_class: Any = POLICIES[name]
    types = typing.get_type_hints(policy_class)
    known = [field.name for field in dataclasses.fields(policy_class)]
    options: dict[str, Any] = {}
    for setting in settings:
        option, equals, text = setting.partition("=")
        if option not in known or not equals:
            raise ValueError(
                f"policy {name!r} has no option {setting!r}; options are "
                f"{[f'{one}=...' for one in known]}"
            )
        options[option] = _parse(f"{name}:{option}", text, types[option])
    policy: Policy = policy_class(**options)
    return policy


def _parse(where: str, text: str, kind: Any) -> Any:
    if kind is bool:
        if text not in _SWITCH:
            raise ValueError(f"{where}={text} is not one of {sorted(_SWITCH)}")
        return _SWITCH[text]
    if kind in (int, float):
        try:
            value = kind(text)
            if not math.isfinite(value):
                raise ValueError
            return value
        except ValueError:
            raise ValueError(f"{where}={text} is not a number ({kind.__name__})") from (
                None
            )
    return text


__all__ = [
    "POLICIES",
    "EarliestDeadlineFirst",
    "FirstComeFirstServed",
    "Policy",
    "QoServe",
    "ShortestJobFirst",
    "SlidingServe",
    "make_policy",
]
