"""Who comes first: SlidingServe's priority sorter (3.3), and one that drops by rule.

`mlps`, the paper's, ascends by K = (late, 1 - g, 1 - e, r): guarded first, then urgent,
then the least work left. Where the paper is silent or at odds with itself:

* It says that late requests are pushed back, but Eq. 10 to 12 make them urgent. Hence
  the leading `late`, which the printed key (Eq. 12) lacks. Guarded requests are never
  pushed back.
* It gives neither alpha, nor epsilon, nor the window of the throughput rho. The
  throughput is what the scheduler saw over its last 50 or so steps that had more to do
  than they could; before the first one, the time of the prompt alone stands in for
  r / rho.
* Ties go by arrival, then by the order given.

`moore`, ours, asks who can be in time at all. Prompts go by deadline, the order that
keeps all promises if any order does; whenever one of them would be late, the longest so
far is pushed back instead, which loses the fewest (Moore's algorithm 1, Management
Science 15, 1968, by Hodgson). It needs neither alpha nor epsilon.

`off` goes by deadline alone: Sarathi-EDF.

`given` leaves the order as it is: somebody else has ranked them.

`P` is the number of prompts.
"""

import dataclasses
import heapq
import math

import numpy as np

from jserve_sched.forwarder import BatchForwarder, Prompts
from jserve_sched.view import SchedulerView

SORTERS = ("off", "mlps", "moore", "given")
LATE_RULES = ("off", "past", "hopeless")


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Prompts in order.

    Attributes:
      order: `[P]` places of the prompts by rank.
      slack_s: `[P]` until each one's first token is due, by rank, seconds (Eq. 8).
      late: `[P]` whether each one was pushed back, or could not be in time alone and
        is not guarded, by rank.
    """

    order: np.ndarray
    slack_s: np.ndarray
    late: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrioritySorter:
    """Orders prompts.

    Attributes:
      rule: off, mlps, moore or given.
      alpha: of mlps: a request is urgent if its work takes more than this share of
        its slack.
      epsilon_s: of mlps: least slack that work is divided by.
      late: of mlps: who is pushed back: "off" nobody (the printed formulas), "past"
        those whose deadline has passed, "hopeless" also those that would miss it
        alone.
    """

    rule: str = "moore"
    alpha: float = 0.5
    epsilon_s: float = 1e-3
    late: str = "hopeless"

    def __post_init__(self) -> None:
        if self.rule not in SORTERS:
            raise ValueError(f"sorter={self.rule!r} is not one of {SORTERS}")
        if self.late not in LATE_RULES:
            raise ValueError(f"late={self.late!r} is not one of {LATE_RULES}")
        if not self.epsilon_s > 0:
            raise ValueError(f"epsilon_s={self.epsilon_s} is not above 0")
        if not self.alpha >= 0:
            raise ValueError(f"alpha={self.alpha} is not 0 or more")

    def rank(
        self, view: SchedulerView, forwarder: BatchForwarder, prompts: Prompts
    ) -> Ranking:
        """Ranks prompts; of those that rank alike the order given decides."""
        facts = np.array(
            [
                (one.next_deadline_s, one.next_promise_s, one.arrival_s, one.guard)
                for one in prompts.requests
            ]
        ).reshape(-1, 4)
        due_s, promise_s, arrival_s = facts[:, 0], facts[:, 1], facts[:, 2]
        guard = facts[:, 3] > 0
        slack_s = due_s - view.start_s
        # A wish may pass unfulfilled; late is who breaks a promise.
        left_s = promise_s - view.start_s
        alone_s = forwarder.alone_s(prompts)
        hopeless = left_s < alone_s
        if self.rule == "given":
            late = np.zeros(len(due_s), bool)
            order = np.arange(len(due_s))
        elif self.rule == "off":
            late = np.zeros(len(due_s), bool)
            order = np.lexsort((arrival_s, due_s))
        else:
            work_s = alone_s
            if view.prefill_tokens_per_s is not None:
                work_s = prompts.tokens / view.prefill_tokens_per_s  # Eq. 9
            if self.rule == "moore":
                free_s = left_s - work_s[guard].sum()  # the guarded come first
                free_s[hopeless | guard] = np.inf
                late = (hopeless | surplus(free_s, work_s)) & ~guard
                order = np.lexsort((arrival_s, due_s, ~guard, late))
            else:
                late = self._pushed_back(left_s, hopeless) & ~guard
                urgency = work_s / np.maximum(slack_s, self.epsilon_s)  # Eq. 10
                normal = ~(urgency > self.alpha)  # Eq. 11
                keys = (arrival_s, prompts.tokens, normal, ~guard, late)
                order = np.lexsort(keys)  # Eq. 13
        return Ranking(order, slack_s[order], (late | hopeless & ~guard)[order])

    def _pushed_back(self, left_s: np.ndarray, hopeless: np.ndarray) -> np.ndarray:
        if self.late == "off":
            return np.zeros(len(left_s), bool)
        return left_s <= 0 if self.late == "past" else hopeless


def surplus(slack_s: np.ndarray, work_s: np.ndarray) -> np.ndarray:
    """Returns `[P]` whom to push back so that most are in time, one after another.

    Moore's algorithm: by deadline, giving up the longest whenever one would be late.

    Args:
      slack_s: `[P]` seconds until each is due; infinite ones are never pushed back.
      work_s: `[P]` seconds each one takes.
    """
    given_up = np.zeros(len(slack_s), bool)
    if not len(slack_s) or work_s.sum() <= slack_s.min():
        return given_up
    end_s = 0.0
    longest: list[tuple[float, int]] = []
    slacks, works = slack_s.tolist(), work_s.tolist()
    for index in np.argsort(slack_s, kind="stable").tolist():
        if slacks[index] == math.inf:
            break
        end_s += works[index]
        heapq.heappush(longest, (-works[index], index))
        if end_s > slacks[index]:
            minus_work_s, dropped = heapq.heappop(longest)
            end_s += minus_work_s
            given_up[dropped] = True
    return given_up
