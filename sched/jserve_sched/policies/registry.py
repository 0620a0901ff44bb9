"""Scheduling policies; a flag picks one by name, and may set its options.

fcfs                                  by name, with its defaults
sliding:constructor=off:alpha=0.8     with options, each a field of its class
"""

from collections.abc import Callable

from jserve_sched.options import make_from_spec
from jserve_sched.planning.latency_source import LatencySource
from jserve_sched.policies.annealing.policy import (
    Annealing,
    AnnealingSliding,
    SearchLimit,
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


def make_policy(
    spec: str,
    *,
    latency: LatencySource | None = None,
    make_kernel: Callable[[], Kernel] | None = None,
    limit: SearchLimit | None = None,
) -> Policy:
    """Returns a new policy that `name:option=value:...` describes, for one scheduler.

    Args:
      latency: Times of whole requests; None fits them to the predictor.
      make_kernel: Returns what runs searches; only called if the policy searches. None
        takes `anneal` as it stands.
      limit: Ends searches by the clock; None does not.

    Raises:
      ValueError: If the policy or an option is unknown, or a value is invalid.
    """
    parts = {"latency": latency, "make_kernel": make_kernel, "limit": limit}
    given = {name: part for name, part in parts.items() if part is not None}
    policy: Policy = make_from_spec(spec, POLICIES, kind="policy", given=given)
    return policy
