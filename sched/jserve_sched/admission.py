"""Admission: which waiting requests may begin, and what becomes of the others.

A class's rule says what is done with a request that cannot be attained:

queue       it waits behind those that can be, which is what policies do by themselves
refuse      it ends, and its client learns when to come back
degrade     it is served as best effort

A request is *committed* when its prompt begins, or when its slack has fallen to its
work. Until then it may be given up for others: of all prompts, the largest set that can
be in time is found as policies do, by Moore's algorithm, in which those committed are
kept. What is not in the set is held back while there is hope that others end early, and
is refused or degraded once it has none.

Simulated at twice the capacity (2026-11-30, five workloads of jserve), committing at 0,
0.25, 0.5 or 1 times the work attained equally many, so it is 1: clients hear soonest.
To commit on arrival attained 34 % of the requests less on `tight`, and 11 % less on
`heavy_tail`.
"""

import collections
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.ontime.due import due_s, usual_step_s
from jserve_sched.policies.ontime.work import added_s, room_s, scale_of
from jserve_sched.policies.sliding.sorter import surplus
from jserve_sched.requests.facts import Facts, facts_of
from jserve_sched.requests.request import FinishReason, Request

_NUM_RECENT = 64  # requests that say how many begin in a second
_SHARE = 0.1  # of these that clients who come back may take
_MOST_S = 300.0  # until a client is asked to come back
_LASTED_S = 60.0  # that an overload is taken to last at most
_PROBE_S = 5.0  # an idle server then takes a request against its own prediction
MAX_AGE_S = 60.0  # from which a request has no tier, unless the policy says another
_PACE = 0.8  # of the usual step: no answer is paced by shorter ones


class ReturnTimes:
    """Spreads clients that were refused over the time in which there should be room."""

    def __init__(self) -> None:
        self._begun_s: collections.deque[float] = collections.deque(maxlen=_NUM_RECENT)
        self._last_s = 0.0
        self._since_s = self._until_s = 0.0  # an overload, with refusals throughout
        self._refused_s = math.inf  # since when no request has begun

    def begin(self, now_s: float) -> None:
        """Notes that a request has found room."""
        self._begun_s.append(now_s)
        self._refused_s = math.inf

    def is_stuck(self, now_s: float) -> bool:
        """Returns whether clients have only been refused for `_PROBE_S`."""
        return self._refused_s < now_s - _PROBE_S

    def next_s(
        self, now_s: float, least_s: float = 0.0, work_s: float | None = None
    ) -> float:
        """Returns after how many seconds, `least_s` or more, a client finds room.

        `work_s` is what its prompt takes, infinite if it never would be in time.
        Clients come as fast as prompts like it could be computed, or as requests begin,
        less what others take, once an overload has lasted twice as long again.
        """
        self._refused_s = min(self._refused_s, now_s)
        if now_s > self._until_s + _PROBE_S:
            self._since_s = now_s
        self._until_s = now_s
        if work_s == math.inf:
            return math.inf
        lasted_s = min(2.0 * (now_s - self._since_s), _LASTED_S)
        if work_s is None:
            recent_s = [t for t in tuple(self._begun_s) if t >= now_s - _MOST_S]
            work_s = (now_s - recent_s[0]) / len(recent_s) if recent_s else _SHARE
        gap_s = work_s / _SHARE
        after_s = max(self._last_s - now_s, lasted_s) + gap_s
        if after_s > _MOST_S:
            after_s = min(lasted_s + gap_s, _MOST_S)
        self._last_s = now_s + after_s
        return max(after_s, least_s)


def behind(
    waiting: Sequence[Request], now_s: float, max_age_s: float
) -> frozenset[Request]:
    """Returns the requests that a lower number than theirs keeps from beginning.

    Tiers are strict, whatever the policy: while one of a lower number waits, none of a
    higher one begins, unless it arrived more than `max_age_s` ago.
    """
    first = min((one.priority for one in waiting), default=0)
    since_s = now_s - max_age_s
    return frozenset(
        one for one in waiting if one.priority > first and one.arrival_s >= since_s
    )


def in_tiers(places: np.ndarray, prompts: Facts, since_s: float) -> np.ndarray:
    """Returns places `[P]` of prompts by tier, as `behind` lets them begin.

    Those that run, or arrived before `since_s`, are in the first one.
    """
    tiers = np.array([one.priority for one in prompts.requests])
    tiers[(prompts.is_running > 0) | (prompts.arrival_s < since_s)] = tiers.min()
    in_turn: np.ndarray = places[np.argsort(tiers[places], kind="stable")]
    return in_turn


class Review(NamedTuple):
    """What becomes of the waiting requests; those not named may begin.

    Attributes:
      held: Those that may not begin yet.
      degraded: Those that become best effort.
      ended: Those that end, why, and the work of each, seconds; infinite if it would
        be late even if nothing else waited.
    """

    held: frozenset[Request]
    degraded: list[Request]
    ended: list[tuple[Request, FinishReason, float]]


class Admission:
    """Applies the rules of the requests' classes; see the module.

    Attributes:
      returns: When clients that are refused should come back.
      is_needed: Whether a request has come that may be refused, degraded or ended.
      has_tiers: Whether one has come whose priority is not 0.
    """

    def __init__(self) -> None:
        self.returns = ReturnTimes()
        self.is_needed = self.has_tiers = False

    def enter(self, request: Request) -> None:
        """Takes note of a request that has arrived."""
        self.is_needed |= not request.is_committed
        self.has_tiers |= request.priority != 0

    def review(self, view: SchedulerView) -> Review:
        """Decides on all waiting requests."""
        # The time left of each prompt, and the work that it brings.
        facts = facts_of(view.begun).before(view.queue.facts)
        steps = StepPrices(view)
        scale = scale_of(view, steps)
        step_s = usual_step_s(view.decodes, least_s=scale.least_s, most_s=scale.full_s)
        within_s = scale.edges_s[scale.edges_s <= step_s]  # a step ends on an edge
        step_s = max(float(within_s.max(initial=0.0)), scale.first_s)
        due, more_steps = due_s(facts, step_s)
        left_s = due - view.start_s
        alone_s = steps.alone_s(facts)
        is_guess = [
            bool(one.stop_token_ids) and one.predicted_output_tokens == one.max_tokens
            for one in facts.requests
        ]
        more_steps[is_guess] = 0.0  # else no short answer would ever be seen
        work_s = added_s(steps, scale, facts, alone_s) + more_steps * scale.least_s

        # Those late even alone, by the prompt, or by an answer whose length is known.
        lost = left_s < alone_s
        answer_s = (facts.answer_tokens - 1) * max(scale.least_s, _PACE * step_s)
        answer_s[is_guess] = 0.0
        lost |= facts.end_s - view.start_s < alone_s + answer_s

        # The largest set in time.
        free_s = room_s(scale, left_s, step_s, is_whole=bool(view.running))
        free_s[lost | np.isinf(left_s)] = np.inf
        kept = [one.is_committed and one.admission != "queue" for one in facts.requests]
        late = lost | surplus(free_s, work_s, np.array(kept))
        is_last = left_s - alone_s <= alone_s

        # Those late even if they came to an empty queue, in the middle of a step.
        whole_s = due - facts.arrival_s - step_s / 2
        is_never = room_s(scale, whole_s, step_s) < work_s
        is_never |= facts.end_s - facts.arrival_s < alone_s + answer_s
        work_s[is_never] = math.inf

        # What becomes of each request.
        held, degraded, ended = set(), [], []
        is_stuck = not view.running and self.returns.is_stuck(view.now_s)
        for place in range(len(view.begun), len(kept)):
            one = facts.requests[place]
            if one.is_committed:
                continue
            if late[place] and view.now_s - one.arrival_s > one.max_queue_wait_s:
                ended.append((one, FinishReason.EXPIRED, float(work_s[place])))
            elif one.admission == "queue":
                continue
            elif not late[place]:
                one.is_committed = bool(is_last[place])
            elif not is_last[place]:
                held.add(one)
            elif is_stuck:
                # Nothing else would ever correct a prediction that refuses all.
                one.is_committed, is_stuck = True, False
            elif one.admission == "degrade":
                degraded.append(one)
            else:
                ended.append((one, FinishReason.REFUSED, float(work_s[place])))
        return Review(frozenset(held if view.running else ()), degraded, ended)
