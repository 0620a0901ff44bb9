"""Scheduling policies; a flag picks one by name, and may set its options.

fcfs                                  by name, with its defaults
sliding:published=on:alpha=0.8        with options, each a field of its class
my_module.MyPolicy:option=value       a class of a module that Python finds, or that
                                      lies in the current folder
"""

import importlib
import os
import pathlib
import sys
from collections.abc import Callable

from jserve_sched.options import make_from_spec
from jserve_sched.policies.annealing.policy import Annealing, SearchLimit
from jserve_sched.policies.annealing.search import Kernel
from jserve_sched.policies.base import Policy
from jserve_sched.policies.in_order import (
    EarliestDeadlineFirst,
    FirstComeFirstServed,
    ShortestJobFirst,
)
from jserve_sched.policies.laxity import LeastLaxityFirst
from jserve_sched.policies.ontime.policy import OnTime
from jserve_sched.policies.qoserve import QoServe
from jserve_sched.policies.sliding.policy import SlidingServe

POLICIES: dict[str, type[Policy]] = {
    "fcfs": FirstComeFirstServed,
    "edf": EarliestDeadlineFirst,
    "sjf": ShortestJobFirst,
    "laxity": LeastLaxityFirst,
    "ontime": OnTime,
    "qoserve": QoServe,
    "sliding": SlidingServe,
    "annealing": Annealing,
}


def make_policy(
    spec: str,
    *,
    make_kernel: Callable[[], Kernel] | None = None,
    limit: SearchLimit | None = None,
) -> Policy:
    """Returns a new policy that `name:option=value:...` describes, for one scheduler.

    A class with a field of the name of an argument is given it: searches are run by
    what `make_kernel` returns, `anneal` by default, and ended by `limit`.

    Raises:
      ValueError: If the policy or an option is unknown, or a value is invalid; of a
        class of the user's own, if it cannot be imported or made, or is not a policy.
    """
    name = spec.partition(":")[0]
    if name in POLICIES or "." not in name:
        classes = POLICIES
    else:
        classes = {name: _import_policy(name)}
    parts = {"make_kernel": make_kernel, "limit": limit}
    given = {name: part for name, part in parts.items() if part is not None}
    try:
        policy: Policy = make_from_spec(spec, classes, kind="policy", given=given)
    except (TypeError, NameError) as error:
        raise ValueError(f"policy {name!r} cannot be made: {error}") from error
    return policy


def policy_file(spec: str) -> pathlib.Path | None:
    """Returns the source file of a policy of the user's own; None of any other."""
    name = spec.partition(":")[0]
    if name in POLICIES:
        return None
    path = sys.modules[_import_policy(name).__module__].__file__
    return None if path is None else pathlib.Path(path)


def _import_policy(name: str) -> type[Policy]:
    """Returns the class that `module.Class` names.

    An installed program does not look for modules in the current folder, so that is
    put at the end of where Python looks.
    """
    module_name, _, class_name = name.rpartition(".")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # what the module does is not ours
        fault = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"policy {name!r}: {module_name!r} cannot be imported, in {folder} or "
            f"where Python looks: {fault}"
        ) from error
    chosen = getattr(module, class_name, None)
    if not isinstance(chosen, type) or not callable(getattr(chosen, "plan", None)):
        raise ValueError(
            f"policy {name!r}: {module_name} has no class {class_name!r} with a method "
            "plan(view)"
        )
    return chosen
