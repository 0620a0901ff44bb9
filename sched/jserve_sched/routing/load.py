"""What a replica tells of its load, and how many requests would attain their SLOs.

A prompt takes time of its replica, and has a time by which it must be computed: that is
all a router needs to see which of them can be in time together (Moore's rule), with one
more or without it. Both are made of the prices that the replica's own scheduler plans
by, so a router asks no replica before it decides.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.ontime.due import due_s, usual_step_s
from jserve_sched.policies.ontime.work import added_s, room_s, scale_of
from jserve_sched.policies.sliding.sorter import surplus
from jserve_sched.requests.facts import facts_of
from jserve_sched.requests.slo import Slo
from jserve_sched.steps.plan import Row


class Newcomer(NamedTuple):
    """A request that a router has to send somewhere.

    Attributes:
      arrival_s: Time of arrival, clock seconds.
      num_tokens: Prompt tokens.
      answer_tokens: Output tokens, as predicted.
      can_be_refused: Whether its class asks for that where it cannot be attained.
      prefix: Content hashes of the prompt's pages, from the first.
    """

    arrival_s: float
    num_tokens: int
    answer_tokens: int
    slo: Slo = Slo()
    can_be_refused: bool = False
    prefix: tuple[bytes, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplicaLoad:
    """A snapshot of one replica; times are seconds from `made_s` on its clock.

    Attributes:
      made_s: When it was made, clock seconds.
      rooms_s: Time for prefill until each prompt is due; infinite without a deadline.
      works_s: Time that each of these prompts, the waiting and the begun, still takes.
      ends_s: When each running answer should end, ascending.
      step_s: Time between two tokens of an answer.
      least_s: Time of a step without prefill.
      token_s: Time that a token of a prompt adds.
      in_flight_s: Time until what is planned already has run.
      num_running: Requests that hold a slot.
      num_waiting: Requests that hold none.
      num_free_slots: Slots that no request holds.
      num_free_pages: KV pages that can be handed out.
      page_tokens: Tokens of a KV page.
      prefill_tokens: Prompt tokens that are not computed yet.
    """

    made_s: float
    rooms_s: tuple[float, ...]
    works_s: tuple[float, ...]
    ends_s: tuple[float, ...]
    step_s: float
    least_s: float
    token_s: float
    in_flight_s: float
    num_running: int
    num_waiting: int
    num_free_slots: int
    num_free_pages: int
    page_tokens: int
    prefill_tokens: int

    @property
    def num_requests(self) -> int:
        """Number of requests that have not ended."""
        return self.num_running + self.num_waiting

    def work_s(self, newcomer: Newcomer, num_cached: int = 0) -> float:
        """Returns the time that a prompt takes, but for its cached tokens."""
        return max(newcomer.num_tokens - num_cached, 1) * self.token_s

    def room_s(self, newcomer: Newcomer, now_s: float) -> float:
        """Returns the time for prefill until a prompt is due, once it has a slot.

        Of a bound on the last token, at most half is kept for the answer, since its
        length is a guess.
        """
        slo, since_s = newcomer.slo, newcomer.arrival_s - now_s
        left_s = math.inf
        if slo.ttft_s is not None:
            left_s = since_s + slo.ttft_s
        if slo.ttlt_s is not None:
            answer_s = (newcomer.answer_tokens - 1) * self.step_s
            left_s = min(left_s, since_s + slo.ttlt_s - min(answer_s, slo.ttlt_s / 2))
        if left_s == math.inf:
            return math.inf
        left_s -= self.in_flight_s + self._slot_s(newcomer)
        return max(left_s, 0.0) * max(1.0 - self.least_s / self.step_s, 0.0)

    def _slot_s(self, newcomer: Newcomer) -> float:
        """Returns when there is a slot, and about enough KV, behind all that wait."""
        ahead = self.num_waiting - self.num_free_slots
        if self.num_free_pages * self.page_tokens < newcomer.num_tokens:
            ahead = max(ahead, 0)
        if ahead < 0 or not self.ends_s:
            return 0.0
        return self.ends_s[min(ahead, len(self.ends_s) - 1)]

    @functools.cached_property
    def num_lost(self) -> int:
        """Number of its prompts that cannot all be in time."""
        return _num_lost(self.rooms_s, self.works_s)

    def gain(self, newcomer: Newcomer, now_s: float, num_cached: int = 0) -> int:
        """Returns how many more requests attain if the newcomer comes here.

        It is 1 where it disturbs nobody, 0 where it, or another for it, would be late.
        """
        rooms_s = (*self.rooms_s, self.room_s(newcomer, now_s))
        works_s = (*self.works_s, self.work_s(newcomer, num_cached))
        return 1 - (_num_lost(rooms_s, works_s) - self.num_lost)

    def plus(self, newcomer: Newcomer) -> "ReplicaLoad":
        """Returns the load with a request that was sent there since."""
        return dataclasses.replace(
            self,
            rooms_s=(*self.rooms_s, self.room_s(newcomer, self.made_s)),
            works_s=(*self.works_s, self.work_s(newcomer)),
            num_waiting=self.num_waiting + 1,
            prefill_tokens=self.prefill_tokens + newcomer.num_tokens,
        )


def _num_lost(rooms_s: tuple[float, ...], works_s: tuple[float, ...]) -> int:
    rooms, works = np.array(rooms_s), np.array(works_s)
    lost = rooms < works
    rooms[lost] = math.inf
    return int((lost | surplus(rooms, works)).sum())


def load_of(view: SchedulerView) -> ReplicaLoad:
    """Returns what the replica of a snapshot tells."""
    begun = set(view.begun)
    decodes = [one for one in view.running if one not in begun]
    steps = StepPrices(
        view, [Row(one, one.num_dispatched_tokens, 1, True) for one in decodes]
    )
    scale = scale_of(view, steps)
    step_s = usual_step_s(decodes, least_s=scale.least_s, most_s=scale.full_s)
    prompts = facts_of(view.begun).before(view.queue.facts)
    left_s = due_s(prompts, step_s)[0] - view.start_s
    rooms_s = room_s(scale, left_s, step_s)
    rooms_s[np.isinf(left_s)] = math.inf
    works_s = added_s(steps, scale, prompts, steps.alone_s(prompts))
    return ReplicaLoad(
        made_s=view.now_s,
        rooms_s=tuple(rooms_s.tolist()),
        works_s=tuple(works_s.tolist()),
        ends_s=tuple(sorted(one.expected_tokens_left * step_s for one in view.running)),
        step_s=step_s,
        least_s=scale.least_s,
        token_s=scale.token_s,
        in_flight_s=view.in_flight_s,
        num_running=len(view.running),
        num_waiting=len(view.queue),
        num_free_slots=view.num_free_slots,
        num_free_pages=view.ledger.num_available,
        page_tokens=view.ledger.page_size,
        prefill_tokens=int(prompts.tokens.sum()),
    )
