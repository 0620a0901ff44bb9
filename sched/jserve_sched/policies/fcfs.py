"""`fcfs`: first come, first served, with chunked prefill (see `in_order`)."""

import dataclasses

import numpy as np

from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.in_order import InOrder
from jserve_sched.requests.facts import Facts


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstComeFirstServed(InOrder):
    """Running requests first, then waiting ones, each by arrival."""

    def key(self, view: SchedulerView, facts: Facts) -> np.ndarray:
        """Returns who runs."""
        return 1.0 - facts.is_running
