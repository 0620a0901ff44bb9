"""Scheduling policies; a flag picks one by name, and may set its options.

fcfs                                  by name, with its defaults
sliding:constructor=off:alpha=0.8     with options, each a field of its class
"""

import dataclasses

from jserve_sched.options import make_from_spec
from jserve_sched.policies.annealing.policy import (
    Annealing,
    AnnealingSliding,
    PlannedAdmission,
)
from jserve_sched.policies.annealing.search import Kernel
from jserve_sched.policies.base import Policy
from jserve_sched.policies.in_order import EarliestDeadlineFirst, FirstComeFirstServed
from jserve_sched.policies.laxity import LeastLaxityFirst
from jserve_sched.policies.qoserve import QoServe
from jserve_sched.policies.sjf import ShortestJobFirst
from jserve_sched.policies.sliding.policy import SlidingServe

POLICIES: dict[str, type[Policy]] = {
    "fcfs": FirstComeFirstServed,
    "edf": EarliestDeadlineFirst,
    "sjf": ShortestJobFirst,
    "laxity": LeastLaxityFirst,
    "qoserve": QoServe,
    "sliding": SlidingServe,
    "annealing": Annealing,
    "annealing+sliding": AnnealingSliding,
}


def make_policy(spec: str, *, kernel: Kernel | None = None) -> Policy:
    """Returns the policy that `name:option=value:...` describes.

    `kernel` runs its search, if it searches; None leaves it to `sched`'s own.

    Raises:
      ValueError: if the policy or an option is unknown, or a value is invalid.
    """
    policy: Policy = make_from_spec(spec, POLICIES, kind="policy")
    if kernel is not None and isinstance(policy, PlannedAdmission):
        return dataclasses.replace(policy, kernel=kernel)
    return policy
