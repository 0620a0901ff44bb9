"""The order of prompts: SlidingServe's priority sorter (3.3), and two others.

`mlps`, the paper's, ascends by K = (late, 1 - g, 1 - e, r): guarded first, then urgent,
then the least work left. Where the paper is silent or at odds with itself:

* It says that late requests are pushed back, but Eq. 10 to 12 make them urgent. Hence
  the leading `late`, which the printed key (Eq. 12) lacks: requests that would miss
  their deadline alone. Guarded requests are never pushed back.
* It gives neither alpha, nor epsilon, nor the window of the throughput rho. The
  throughput is what the scheduler saw over its last 50 or so steps that had more to do
  than they could; before the first one, the time of the prompt alone stands in for
  r / rho.
* Ties go by arrival, then by the order given.

`moore`, ours, asks who can be in time at all. Prompts go by deadline, the order that
attains all SLOs if any order does; whenever one of them would be late, the longest so
far is pushed back instead, which loses the fewest (Moore's algorithm 1, Management
Science 15, 1968, by Hodgson). It needs neither alpha nor epsilon.

`off` goes by deadline alone: Sarathi-EDF. `P` is the number of prompts.
"""

import dataclasses
import heapq
import math
from typing import Literal

import numpy as np

from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.facts import Facts

Sorter = Literal["off", "mlps", "moore"]
_LEAST_SLACK_S = 1e-3  # epsilon of Eq. 10


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Prompts by rank, `[P]` each.

    Attributes:
      order: Places of the prompts.
      slack_s: Time until the next token is wanted, seconds (Eq. 8).
      late: Whether it was pushed back, or is unguarded and could not be in time alone.
    """

    order: np.ndarray
    slack_s: np.ndarray
    late: np.ndarray


def rank(
    view: SchedulerView,
    step_prices: StepPrices,
    prompts: Facts,
    *,
    sorter: Sorter = "moore",
    alpha: float = 0.5,
) -> Ranking:
    """Ranks prompts; of those that rank equally the order given decides.

    `alpha` is that of mlps: a request is urgent if its work takes more than this share
    of its slack.
    """
    pace_s, arrival_s, guard = prompts.pace_s, prompts.arrival_s, prompts.guard > 0
    slack_s = pace_s - view.start_s  # Eq. 8
    # A token may come after its pace; late is a request that violates its SLO.
    left_s = prompts.deadline_s - view.start_s
    work_s = alone_s = step_prices.alone_s(prompts)
    if view.prefill_tokens_per_s is not None:
        work_s = prompts.tokens / view.prefill_tokens_per_s  # Eq. 9
    hopeless = left_s < alone_s
    late = hopeless & ~guard
    if sorter == "off":
        order = np.lexsort((arrival_s, pace_s))
    elif sorter == "moore":
        free_s = left_s - work_s[guard].sum()  # the guarded come first
        free_s[hopeless | guard] = np.inf
        late |= surplus(free_s, work_s) & ~guard
        order = np.lexsort((arrival_s, pace_s, ~guard, late))
    else:
        urgency = work_s / np.maximum(slack_s, _LEAST_SLACK_S)  # Eq. 10
        normal = ~(urgency > alpha)  # Eq. 11
        keys = (arrival_s, prompts.tokens, normal, ~guard, late)
        order = np.lexsort(keys)  # Eq. 13
    return Ranking(order, slack_s[order], late[order])


def surplus(
    slack_s: np.ndarray,
    work_s: np.ndarray,
    kept: np.ndarray | None = None,
    *,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """Returns `[P]` which to push back so that most are in time, one after another.

    Moore's algorithm: by slack `[P]`, giving up the longest work `[P]` whenever one
    would be late; with weights `[P]` the most work for its weight, a heuristic (the
    exact set is Lawler and Moore's, Management Science 16, 1969). Those with infinite
    slack are never pushed back, nor those that must be `kept` `[P]`: others make room
    for them.
    """
    given_up = np.zeros(len(slack_s), bool)
    if work_s.sum() <= slack_s.min(initial=math.inf):
        return given_up
    end_s = 0.0
    longest: list[tuple[float, int]] = []
    slacks, works = slack_s.tolist(), work_s.tolist()
    costs = works if weight is None else (work_s / weight).tolist()
    keeps = [False] * len(slacks) if kept is None else kept.tolist()
    for index in np.argsort(slack_s, kind="stable").tolist():
        if slacks[index] == math.inf:
            break
        end_s += works[index]
        if not keeps[index]:
            heapq.heappush(longest, (-costs[index], index))
        while end_s > slacks[index] and longest:
            _, dropped = heapq.heappop(longest)
            end_s -= works[dropped]
            given_up[dropped] = True
    return given_up
