"""Scheduling policies; a flag picks one by name, and may set its options.

fcfs                                  by name, with its defaults
sliding:constructor=off:alpha=0.8     with options, each a field of its class
"""

from jserve_sched.policies.base import Policy
from jserve_sched.policies.edf import EarliestDeadlineFirst
from jserve_sched.policies.fcfs import FirstComeFirstServed
from jserve_sched.policies.qoserve import QoServe
from jserve_sched.policies.sjf import ShortestJobFirst
from jserve_sched.policies.sliding import SlidingServe
from jserve_sched.spec_options import make_from_spec

POLICIES: dict[str, type[Policy]] = {
    "fcfs": FirstComeFirstServed,
    "edf": EarliestDeadlineFirst,
    "sjf": ShortestJobFirst,
    "qoserve": QoServe,
    "sliding": SlidingServe,
}


def make_policy(spec: str) -> Policy:
    """Returns the policy that `name:option=value:...` describes.

    Raises:
      ValueError: if the policy or an option is unknown, or a value is no good.
    """
    policy: Policy = make_from_spec(spec, POLICIES, kind="policy")
    return policy


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
