"""Multi-Level Priority Sorter: whose prompt is computed first (SlidingServe 3.3).

Ascending by K = (late, 1 - g, 1 - e, r): what can still be in time before what cannot,
then guarded, then urgent, then the least work left. Where the paper is silent or at
odds with itself:

* It says that late requests are pushed back, but Eq. 10 to 12 make them urgent. Hence
  the leading `late`, which the printed key (Eq. 12) lacks. Guarded requests are never
  pushed back.
* It gives neither alpha, nor epsilon, nor the window of the throughput rho. The
  throughput is what the scheduler saw over about its last 50 prefill steps; before the
  first one, the time of the prompt alone stands in for r / rho.
* Ties go by arrival, then by the order given.
"""

import dataclasses

import numpy as np

from jserve_sched.forwarder import BatchForwarder, Prompts
from jserve_sched.view import SchedulerView

LATE_RULES = ("off", "past", "hopeless")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrioritySorter:
    """Orders prompts.

    Attributes:
      alpha: a request is urgent if its work takes more than this share of its slack.
      epsilon_s: least slack that work is divided by.
      late: who is pushed back: "off" nobody (the printed formulas), "past" those
        whose deadline has passed, "hopeless" also those that would miss it alone.
    """

    alpha: float = 0.5
    epsilon_s: float = 1e-3
    late: str = "hopeless"

    def __post_init__(self) -> None:
        if self.late not in LATE_RULES:
            raise ValueError(f"late={self.late!r} is not one of {LATE_RULES}")
        if not self.epsilon_s > 0:
            raise ValueError(f"epsilon_s={self.epsilon_s} is not above 0")

    def order(
        self, view: SchedulerView, forwarder: BatchForwarder, prompts: Prompts
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ranks prompts.

        Args:
          view: the snapshot.
          forwarder: prices a prompt alone.
          prompts: in any order.

        Returns:
          `[P]` places in `prompts` by rank; `[P]` slack s_i of each prompt, seconds
          (Eq. 8); `[P]` whether it is late.
        """
        requests = prompts.requests
        facts = np.array(
            [(one.next_deadline_s, one.arrival_s, one.guard) for one in requests]
        ).reshape(-1, 3)
        slack_s = facts[:, 0] - view.start_s
        guard = facts[:, 2] > 0
        if view.prefill_tokens_per_s is None or self.late == "hopeless":
            alone_s = forwarder.alone_s(prompts)
        if view.prefill_tokens_per_s is None:
            work_s = alone_s
        else:
            work_s = prompts.tokens / view.prefill_tokens_per_s  # Eq. 9
        urgency = work_s / np.maximum(slack_s, self.epsilon_s)  # Eq. 10
        if self.late == "off":
            late = np.zeros(len(requests), bool)
        elif self.late == "past":
            late = slack_s <= 0
        else:
            late = slack_s < alone_s
        keys = (
            facts[:, 1],
            prompts.tokens,
            ~(urgency > self.alpha),  # Eq. 11
            ~guard,
            late & ~guard,
        )
        return np.lexsort(keys), slack_s, late
