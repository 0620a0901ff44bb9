"""Candidates: the requests that may be in the next step, and those to preempt.

A queue may be much longer than a step. At most `MAX_WAITING` waiting requests are
ranked, or the number that a policy asks for: guarded ones first, then those that can
still be in time, then the others. Half of them are the shortest, half the most urgent.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from jserve_sched.planning.builder import PlanBuilder
from jserve_sched.planning.step_prices import rows_of
from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.facts import Facts, facts_of
from jserve_sched.requests.request import Request, RequestState

_FAR_S = 1e12  # later than any deadline, in clock seconds
MAX_WAITING = 128  # waiting requests that one plan ranks


class Candidates:
    """The requests of one snapshot, as decodes and prompts.

    Attributes:
      decodes: Running requests with one token to compute.
      rows: Rows of these, in their order.
      prompts: Requests with a prompt to compute, running ones before waiting ones.
    """

    def __init__(
        self,
        view: SchedulerView,
        waiting: Sequence[Request] | None = None,
        *,
        running: Sequence[Request] | None = None,
        aged_before_s: float = -math.inf,
    ):
        """Looks at a snapshot.

        Args:
          waiting: Requests that may be admitted, in order; None takes those most worth
            ranking, by arrival.
          running: All running requests, of which the last is preempted first; None
            ranks them by deadline.
          aged_before_s: Clock seconds; requests that arrived before are preempted last,
            later arrivals first.
        """
        self._view = view
        self._running = running
        self._aged_before_s = aged_before_s
        self._begun, self.decodes = view.begun, view.decodes
        if running is not None:
            begun = set(view.begun)
            self._begun = [one for one in running if one in begun]
            self.decodes = [one for one in running if one not in begun]
        self.rows = rows_of(self.decodes)
        self._chosen = choose_waiting(view) if waiting is None else None
        chosen = self._chosen.requests if self._chosen else waiting or ()
        most = len(chosen) if self._chosen else view.most_offered
        self.prompts = [*self._begun, *chosen[:most]]

    @functools.cached_property
    def facts(self) -> Facts:
        """Facts of the prompts."""
        chosen = self._chosen or facts_of(self.prompts[len(self._begun) :])
        return facts_of(self._begun).before(chosen) if self._begun else chosen

    @functools.cached_property
    def _ranked(self) -> Sequence[Request]:
        """Running requests: by default the aged by arrival, then others by deadline.

        Of the others of one tier, late ones that are not guarded come last.
        """
        start_s, aged_before_s = self._view.start_s, self._aged_before_s

        def key(request: Request) -> tuple[int, int, bool, float, float, str]:
            arrival_s, name = request.arrival_s, request.request_id
            if arrival_s < aged_before_s:
                return (0, 0, False, arrival_s, arrival_s, name)
            late = request.deadline_s < start_s and not request.guard
            return (1, request.priority, late, request.pace_s, arrival_s, name)

        return self._running or sorted(self._view.running, key=key)

    def victims(self, request: Request) -> Iterator[Request]:
        """Yields the running requests that rank behind one of them, the last one first.

        Nothing is sorted until a page is short.
        """
        for other in reversed(self._ranked):
            if other is request:
                return
            yield other

    def add_decodes(self, builder: PlanBuilder) -> None:
        """Adds every decode; under KV pressure the most important ones."""
        builder.add_decodes(self.rows, self.victims)

    def add_prompts(self, builder: PlanBuilder, ordered: Sequence[Request]) -> None:
        """Adds prompts in order until nothing fits."""
        for request in ordered:
            if request.state is RequestState.WAITING and not builder.is_admitting:
                if not self._begun:
                    break  # all others wait too
                continue
            if not builder.add_prefill(request, self.victims(request)):
                break
        if builder.is_empty and self._running is None:
            # The first in order may preempt none. The first of these may preempt all
            # the others, so one continues whatever the order was.
            for request in self._ranked:
                builder.add_prefill(request, self.victims(request))


def tightest_slack(
    decodes: Sequence[Request], *, start_s: float, least_s: float
) -> tuple[float, float]:
    """Returns T_cur and T_next (SlidingServe Eq. 14 and 15), seconds.

    They are how long decodes can wait for their next token and, after it, for another,
    in a step that starts at `start_s` and takes `least_s` without any prefill. The
    paper does not say which decodes are protected (D_safe). Here: those whose next
    token can still be in time, `s_i >= least_s`. A late one would stop all prefill
    without becoming less late. Both are infinite if no decode is protected.
    """
    pacings = itertools.chain.from_iterable([one.pacing for one in decodes])
    first_s, from_s, gap_s, last = np.fromiter(pacings, np.float64).reshape(-1, 4).T
    index = np.array(
        [len(one.output_tokens) + one.num_pending_tokens for one in decodes]
    )
    # s_i (Eq. 1), and s_i + L^tbt_i: until the next token is wanted, and the one after.
    after_s = from_s + (np.minimum(index, last) + 1) * gap_s
    next_s = np.where(index > 0, after_s - gap_s, first_s) - start_s
    after_s -= start_s
    safe = next_s >= least_s
    current_s = float(np.min(next_s[safe], initial=np.inf))
    if np.isinf(current_s):
        return np.inf, np.inf
    return current_s, float(after_s[safe].min()) - current_s


def choose_waiting(
    view: SchedulerView, most: int = MAX_WAITING, *, first: int = 0
) -> Facts:
    """Returns the waiting requests worth ranking, by arrival.

    Args:
      most: Most requests that are returned; 2 or more.
      first: Number of the first requests by arrival that are left out.
    """
    waiting = view.facts
    if first:
        waiting = waiting.take(np.arange(first, len(waiting.requests)))
    num_waiting, tokens = len(waiting.requests), waiting.known_tokens
    if num_waiting <= most:
        return waiting
    work_s = tokens / (view.prefill_tokens_per_s or np.inf)
    late = waiting.deadline_s < view.start_s + work_s
    # The late ones come after all others, the guarded before all others.
    shift = 2 * _FAR_S * late - 4 * _FAR_S * waiting.guard
    index = np.arange(num_waiting)  # ties go by arrival
    shortest = tokens + index / num_waiting + shift
    urgent = np.where(np.isinf(waiting.pace_s), _FAR_S + index, waiting.pace_s) + shift
    half = most // 2
    chosen = np.argpartition(shortest, half)[:half]
    urgent[chosen] = np.inf
    chosen = np.concatenate((chosen, np.argpartition(urgent, half)[:half]))
    return waiting.take(np.sort(chosen))
