"""Scheduling policies; a flag picks one by name."""

from jserve_sched.policies.base import Policy
from jserve_sched.policies.edf import EarliestDeadlineFirst
from jserve_sched.policies.fcfs import FirstComeFirstServed

POLICIES: dict[str, type[Policy]] = {
    "fcfs": FirstComeFirstServed,
    "edf": EarliestDeadlineFirst,
}


def make_policy(name: str) -> Policy:
    """Returns the policy called `name`, with its defaults.

    Raises:
      ValueError: if there is none of that name.
    """
    if name not in POLICIES:
        raise ValueError(f"policy {name!r} is unknown; known: {sorted(POLICIES)}")
    return POLICIES[name]()


__all__ = [
    "POLICIES",
    "EarliestDeadlineFirst",
    "FirstComeFirstServed",
    "Policy",
    "make_policy",
]
