"""`ontime`: the largest set of requests that can all be in time.

1. Every prompt has one due time (`due`), of its first token or, less the steps that its
   answer needs, of its last.
2. The on-time set: prompts by due time; whenever one would be late, the one with most
   work so far is given up, which loses the fewest (Moore's algorithm 1, Management
   Science 15, 1968, by Hodgson). Until a due time there is room for the time less a
   step without prefill for each step until then, of the length that buckets and decodes
   allow; work is what a prompt adds to steps, and the steps that its answer needs
   beside. The set must find KV pages in time too (`pages`). What is given up comes
   last, but is looked at in each step.
3. A step ends before a decode would be late, at the cap (`cap`) that requests yet to
   come need, and by the due times of the prompts that it finishes. It may outlast the
   cap for prompts that would be late otherwise; and there is no cap where that loses
   fewer, those yet to come included.
4. What loses fewer requests gives way. A second of prefill is worth one over the work
   of the cheapest prompt that was given up, and nothing if none was. A request counts
   as its class's `weight`: given up is the most work for its weight.

Predictions err, and the policy minds how much they erred lately:

* A step is sized by the 95th percentile of its time. The set is planned by medians and
  the spread of a *sum* of steps, which is much smaller.
* Decodes keep a buffer of slack, twice the longest delay of a step of late: a decode
  with less gets steps a little shorter than its gap. Only prompts that would be
  late otherwise may use the buffer; and the on-time set, if the prompts gained are more
  than the decodes that the stalls of late would make late.
* Prompts with a completion bound and an answer of guessed length go the shortest first.

Requests that have violated their SLO wait for those that have not: their decodes run in
one step of `_VIOLATED_EVERY` while an on-time prompt waits. The oldest request of those
above `max_age_s` comes first in one of `_AGED_EVERY` steps, and from then on until it
got its share, so that no other takes the slot that it waits for.
"""

import collections
import dataclasses
from typing import NamedTuple

import numpy as np

from jserve_sched.planning.builder import PlanBuilder
from jserve_sched.planning.candidates import Candidates
from jserve_sched.planning.step_prices import OrderPrices, StepPrices
from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.ontime.cap import StepCap
from jserve_sched.policies.ontime.due import (
    DecodeSlack,
    decode_slack,
    due_s,
    guessed_tokens,
    usual_step_s,
)
from jserve_sched.policies.ontime.pages import too_large
from jserve_sched.policies.ontime.work import StepScale, added_s, room_s, scale_of
from jserve_sched.policies.sliding.sorter import surplus
from jserve_sched.requests.facts import Facts, facts_of
from jserve_sched.requests.request import Request
from jserve_sched.steps.plan import StepPlan

_VIOLATED_EVERY = 4
_AGED_EVERY = 16
_FORGET = 0.9998  # of the longest delay, each step: half is left after 3,500
_BUFFER = 2.0  # slack that decodes keep, in longest delays of late
_LEAST_DELAY_S = 1e-4
_PRIOR_DELAY_S = 0.1  # before any was seen: all decodes would be late at the first one
_STALL_STEPS = 2048  # in which stalls are counted
_REGAIN = 0.9  # of a gap that a step takes while the buffer is not full
_MOST_FINISHED = 32  # prompts of a step whose due times are looked at
_GUESSED = 15.0  # times its work is what a prompt of a guessed answer waits longer


class _OnTimeSet(NamedTuple):
    """Prompts that can be in time if no step is longer than `cap_s`, and the others.

    Attributes:
      step_s: Usual duration of a step.
      left_s: `[P]` until each prompt is due, seconds.
      late: `[P]` which cannot be in time, or are given up for others.
      lost_per_s: Weight of prompts lost for each second without prefill.
    """

    cap_s: float
    step_s: float
    left_s: np.ndarray
    late: np.ndarray
    lost_per_s: float


_Turns = tuple[np.ndarray, _OnTimeSet, DecodeSlack]
"""The order of prompts `[P]`, and what it was found with."""


@dataclasses.dataclass(eq=False, kw_only=True)
class OnTime:
    """Serves the largest on-time set; older requests than `max_age_s` have turns."""

    max_age_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.max_age_s >= 0:
            raise ValueError(f"max_age_s={self.max_age_s} is not 0 or more")
        self._cap = StepCap()
        self._violated: set[str] = set()  # ids of running requests
        self._delay_s = _PRIOR_DELAY_S  # the longest of late
        self._stalls = collections.deque([(0, _PRIOR_DELAY_S)])  # step, and delay
        self._step_s = 0.0  # predicted duration of the last step
        self._lost_per_s = 0.0  # prompts lost for each second without prefill
        self._next_start = (-1, 0.0)  # of which step, and when, as predicted
        self._last_turn = -_AGED_EVERY  # step in which the oldest came first

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        step_id, expected_s = self._next_start
        if view.step_id == step_id and view.running:
            self._note(view.start_s - expected_s, step_id)
        while self._stalls and self._stalls[0][0] < view.step_id - _STALL_STEPS:
            self._stalls.popleft()
        aged_before_s = view.now_s - self.max_age_s
        candidates = Candidates(view, aged_before_s=aged_before_s)
        builder = PlanBuilder(view)
        aged = self._whose_turn(view)
        if candidates.prompts:
            self._add(view, candidates, aged, builder)
        else:
            candidates.add_decodes(builder)
        plan = builder.build()
        if plan is not None:
            self._step_s = plan.predicted_s
            self._next_start = view.step_id + 1, view.start_s + plan.predicted_s
            if aged and any(row.request is aged for row in plan.chunks):
                self._last_turn = view.step_id
        return plan

    def _note(self, delay_s: float, step_id: int) -> None:
        """Takes into account how much later a step starts than was predicted."""
        self._delay_s = max(self._delay_s * _FORGET, delay_s)
        if delay_s > self._step_s / 2:
            self._stalls.append((step_id, delay_s))

    def order(
        self, view: SchedulerView, steps: StepPrices, prompts: Facts
    ) -> tuple[np.ndarray, int]:
        """Returns the places of prompts, and the blocks of the next step."""
        scale, cap_s = scale_of(view, steps), self._cap.last_s
        order, chosen, slack = self._turns(view, steps, scale, prompts, cap_s)
        prices = steps.of(prompts.take(order))
        return order, self._budget(chosen, slack, scale.ratio, prices, order)

    def _whose_turn(self, view: SchedulerView) -> Request | None:
        """Returns the oldest request that has prompt left, if it is its turn."""
        if self._last_turn < view.step_id < self._last_turn + _AGED_EVERY:
            return None
        oldest = [*view.begun, *view.admissible[:1]]
        one = min(oldest, key=lambda one: one.arrival_s, default=None)
        return one if one and view.now_s - one.arrival_s > self.max_age_s else None

    def _add(
        self,
        view: SchedulerView,
        candidates: Candidates,
        aged: Request | None,
        builder: PlanBuilder,
    ) -> None:
        """Adds decodes and prompts, one whose turn it is first."""
        start_s, rows, prompts = view.start_s, candidates.rows, candidates.facts
        if aged and aged not in prompts.requests:
            prompts = facts_of([aged]).before(prompts)
        self._violated &= {one.request_id for one in view.running}
        self._violated |= {
            one.request_id
            for one in candidates.decodes
            if one.deadline_s < start_s and not one.guard
        }

        # The order of prompts: the on-time set by due time, then the others.
        steps = StepPrices(view)
        scale = scale_of(view, steps)
        cap_s = self._cap.find_s(view, steps, scale)
        order, chosen, slack = self._turns(view, steps, scale, prompts, cap_s)
        self._lost_per_s = chosen.lost_per_s
        if aged:
            first = prompts.requests.index(aged)
            order = np.concatenate(([first], order[order != first]))

        # The decodes that run, and the length of the step.
        has_room = bool(view.num_free_slots or view.begun) and not chosen.late.all()
        if has_room and view.step_id % _VIOLATED_EVERY:
            rows = [row for row in rows if row.request.request_id not in self._violated]
            if len(rows) < len(candidates.rows):
                steps = StepPrices(view, rows)
        builder.add_decodes(rows, candidates.victims)
        # Priced is what can be placed: slots and pages may end before the order does.
        places = builder.places([prompts.requests[place] for place in order.tolist()])
        placed = order[places]
        order = np.concatenate((placed, np.delete(order, places)))
        prices = steps.of(prompts.take(placed))
        builder.limit_time(self._budget(chosen, slack, scale.ratio, prices, placed))
        candidates.add_prompts(builder, prompts.take(order).requests)

    def _turns(
        self,
        view: SchedulerView,
        steps: StepPrices,
        scale: StepScale,
        prompts: Facts,
        cap_s: float,
    ) -> _Turns:
        """Returns the order of prompts beside the decodes that are running."""
        decodes = [one for one in view.decodes if one.request_id not in self._violated]
        weight = np.array([one.weight for one in prompts.requests])
        start_s = view.start_s
        chosen = self._choose(prompts, weight, steps, scale, decodes, start_s, cap_s)
        slack = decode_slack(
            decodes,
            start_s=start_s,
            least_s=scale.least_s,
            step_s=chosen.step_s,
            lost_per_s=self._lost_per_s,
        )
        left_s, late = chosen.left_s, chosen.late
        num_steps = left_s / chosen.step_s
        late = late | too_large(view, prompts, num_steps, late, weight)
        turn_s = left_s + _GUESSED * scale.token_s * guessed_tokens(prompts)
        order = np.lexsort((prompts.arrival_s, turn_s, prompts.guard <= 0, late))
        return order, chosen._replace(late=late), slack

    def _choose(
        self,
        prompts: Facts,
        weight: np.ndarray,
        steps: StepPrices,
        scale: StepScale,
        decodes: list[Request],
        start_s: float,
        cap_s: float,
    ) -> _OnTimeSet:
        """Chooses the on-time set; without the cap if that loses fewer."""
        alone_s = steps.alone_s(prompts)
        prompts_s = added_s(steps, scale, prompts, alone_s)
        guard = prompts.guard > 0
        violated = [one.request_id in self._violated for one in prompts.requests]
        found: list[_OnTimeSet] = []
        for longest_s in (cap_s, np.inf):
            most_s = min(longest_s, scale.full_s)
            step_s = usual_step_s(decodes, least_s=scale.least_s, most_s=most_s)
            due, more_steps = due_s(prompts, step_s)
            left_s, work_s = due - start_s, prompts_s + more_steps * scale.least_s
            lost = ((left_s < alone_s) | violated) & ~guard
            # The guarded come first.
            free_s = room_s(scale, left_s, step_s) - work_s[guard].sum()
            free_s[lost | guard | np.isinf(left_s)] = np.inf
            given_up = surplus(free_s, work_s, weight=weight)
            least_s = float(np.min((work_s / weight)[given_up], initial=np.inf))
            lost_per_s = 1.0 / max(least_s, scale.first_s - scale.least_s, 1e-6)
            late = lost | given_up
            found.append(_OnTimeSet(longest_s, step_s, left_s, late, lost_per_s))
            if cap_s >= scale.full_s or not given_up.any():
                break
        # What long steps gain now, less what they lose until then.
        capped, longer = found[0], found[-1]
        gained = capped.late & ~longer.late
        until_s = float(longer.left_s[gained].max(initial=0.0))
        least = weight[longer.late].sum() + self._cap.lost_per_s * until_s
        return longer if least < weight[capped.late].sum() else capped

    def _budget(
        self,
        chosen: _OnTimeSet,
        slack: DecodeSlack,
        ratio: float,
        prices: OrderPrices,
        placed: np.ndarray,
    ) -> int:
        """Returns how many blocks of prefill the step should have.

        `placed` are the places of the prompts that can be taken, priced in this order.
        """
        num_on_time = int(np.argmax(np.append(chosen.late[placed], True)))
        left_s = chosen.left_s[placed[:num_on_time]]
        hard_s = soft_s = float(slack.slack_s.min(initial=np.inf)) / ratio
        buffer_s = _BUFFER * self._delay_s
        if buffer_s > _LEAST_DELAY_S:
            kept_s = np.minimum(slack.slack_s, _REGAIN * slack.gap_s)
            kept_s = np.maximum(slack.slack_s - buffer_s, kept_s)
            soft_s = min(hard_s, float(kept_s.min(initial=np.inf)) / ratio)
            # Decodes that a buffer saves in a step, against prompts that it loses.
            regained_s = (1.0 - _REGAIN) * slack.gap_s * slack.num_outputs
            stalls_s = np.sort([stall_s for _, stall_s in self._stalls])
            saved = float(stalls_s.searchsorted(regained_s).sum()) / _STALL_STEPS
            if saved < (hard_s - soft_s) * chosen.lost_per_s:
                soft_s = hard_s
        limit_s = min(soft_s, chosen.cap_s)
        ends = prices.ends[1 : 1 + min(len(left_s), _MOST_FINISHED)]
        ends = ends[ends <= prices.steps.max_blocks].astype(np.int64)
        if len(ends):
            # The first prompts that it can finish, all of them by their due times.
            price_s = prices.predict(ends)
            by_s = np.minimum.accumulate(left_s[: len(ends)]) / ratio
            is_urgent = by_s < price_s + chosen.step_s  # cannot wait for another step
            fits = price_s <= np.minimum(by_s, np.where(is_urgent, hard_s, limit_s))
            if num_finished := int(np.argmin(np.append(fits, False))):
                last = num_finished - 1
                limit_s = min(max(limit_s, float(price_s[last])), float(by_s[last]))
        budget = prices.largest_within(limit_s)
        if soft_s < limit_s:  # only prompts on time use the buffer
            least = max(int(prices.ends[len(left_s)]), prices.largest_within(soft_s))
            budget = min(budget, least)
        return budget
