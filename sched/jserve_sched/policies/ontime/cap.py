"""StepCap: how long a step may be for the sake of requests yet to come.

A step, once begun, cannot be stopped: a request that comes meanwhile waits for its end,
and is late if it cannot wait so long and still have its prompt computed. Short steps
cost throughput, since each of them runs all decodes. The cap is the length that loses
the smallest share of requests such as came lately:

    lost(T) = busy(T) mean_i max(0, 1 - w_i / T) + most(max(0, 1 - (1 - b / T) / load))

over the durations T of steps that fill a bucket, with w_i the time that request i can
wait, b a step of decodes alone, `load` the seconds of prefill that arrive in a second,
busy the share of time in which a step runs, and most(x) the share of requests, those
with most work first, that have a share x of it.
"""

import collections

import numpy as np

from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.ontime.work import StepScale, added_s
from jserve_sched.requests.facts import facts_of
from jserve_sched.requests.request import Request

_NUM_RECENT = 256  # requests that stand for those to come
_EVERY = 8  # steps after which the cap is found again
_SHARE = 0.8  # of the time that a request can wait, for the end of a step
_EQUAL = 1e-3  # shares of requests lost that count as equal: then long steps are better


class StepCap:
    """Remembers the last requests, and finds the cap for more like them.

    `lost_per_s` requests yet to come are lost in a second without the cap.
    """

    def __init__(self) -> None:
        self._recent: collections.deque[Request] = collections.deque(maxlen=_NUM_RECENT)
        self._num_seen = 0
        self._next_step = 0
        self.last_s = np.inf
        self.lost_per_s = 0.0

    def find_s(self, view: SchedulerView, steps: StepPrices, scale: StepScale) -> float:
        """Returns the longest that a step should be, seconds; may be infinite.

        It is never too short for any prefill.
        """
        if new := view.queue.num_arrived - self._num_seen:
            self._recent.extend(view.queue.requests[-new:])
            self._num_seen += new
        if view.step_id >= self._next_step and len(self._recent) > 1:
            self._next_step = view.step_id + _EVERY
            self.last_s = self._find_s(view, steps, scale)
        return max(self.last_s, scale.first_s)

    def _find_s(
        self, view: SchedulerView, steps: StepPrices, scale: StepScale
    ) -> float:
        # The last requests as if they came now, and the work that they bring.
        recent = facts_of(self._recent)
        tokens = np.array([float(one.num_prompt_tokens) for one in self._recent])
        recent = recent._replace(known_tokens=tokens, start=np.zeros(len(tokens)))
        alone_s = steps.alone_s(recent)
        span_s = max(view.now_s - float(recent.arrival_s.min()), 1e-3)
        works_s = np.sort(added_s(steps, scale, recent, alone_s))[::-1].cumsum()
        load = max(float(works_s[-1]) / span_s, 1e-9)
        first_s = [one.pacing.first_s - one.arrival_s for one in self._recent]
        wait_s = (np.array(first_s) - alone_s) * _SHARE
        wait_s[wait_s <= 0] = np.inf  # late however long steps are
        wait_s /= 2 if view.in_flight_s else 1  # a planned step cannot be recalled
        # The share lost with each cap.
        shortest_s = max(scale.first_s, 1.15 * scale.least_s)
        caps_s = scale.edges_s[scale.edges_s >= shortest_s]
        if not len(caps_s):
            return np.inf
        useful = 1.0 - scale.least_s / caps_s
        late = np.maximum(0.0, 1.0 - wait_s / caps_s[:, None]).mean(axis=1)
        lost = np.minimum(load / useful, 1.0) * late
        over_s = np.maximum(0.0, 1.0 - useful / load) * works_s[-1]
        lost += works_s.searchsorted(over_s) / len(works_s)
        place = np.flatnonzero(lost <= lost.min() + _EQUAL)[-1]
        self.lost_per_s = float(late[-1] - late[place]) * len(tokens) / span_s
        return float(caps_s[place])
