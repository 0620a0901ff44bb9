"""QueuePass: when the prompts of a snapshot will be computed, step by step.

Prompts go in the policy's own order. The next step has as many blocks as the policy
would give it, and its own price; later ones compute as many tokens in a second as
recent steps did that left work for later. A prompt waits for a slot and for the pages
of all of it, which what runs gives back when its answer ends.

Requests yet to come do not take part. `benchmarks/policies` says what that costs.
"""

import heapq
from collections.abc import Callable, Sequence

import numpy as np

from jserve_sched.planning.recent_load import RecentLoad
from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.facts import Facts, facts_of
from jserve_sched.requests.request import Request

Turns = np.ndarray | tuple[np.ndarray, int]
Order = Callable[[SchedulerView, StepPrices, Facts], Turns]
"""Returns the places `[P]` of prompts in the order in which a policy takes them, and
perhaps how many blocks of them the next step has."""

_LEAST_S = 1e-4


class QueuePass:
    """The steps that compute the prompts of one snapshot; all times count from it."""

    def __init__(
        self,
        view: SchedulerView,
        order: Order,
        recent: RecentLoad,
        extra: Sequence[Request] = (),
    ):
        """Runs the pass over what waits, and `extra` requests that come now."""
        # The prompts in their order.
        self.now_s, self._recent = view.now_s, recent
        self._steps = steps = StepPrices(view)
        prompts = view.queue.facts.before(facts_of([*view.begun, *extra]))
        turns = order(view, steps, prompts)
        places, budget = turns if isinstance(turns, tuple) else (turns, None)
        prompts = prompts.take(places)
        prices = steps.of(prompts)

        # The next step, and when each prompt is computed.
        full = np.array([min(max(steps.max_blocks, 1), prices.num_blocks)])
        full_s = max(float(prices.predict(full)[0]), _LEAST_S)
        full_per_s = float(full[0]) * steps.block_tokens / full_s
        tokens_per_s = recent.prefill_tokens_per_s or full_per_s
        if budget is None:
            budget = prices.largest_within(recent.step_s or full_s)
        budget = min(budget, prices.num_blocks)
        times_s = prices.predict(np.array([0, budget]))
        least_s, next_s = np.maximum(times_s, _LEAST_S).tolist()
        self._step_s = recent.step_s or least_s
        left = prompts.tokens.cumsum() - budget * steps.block_tokens
        later_s = np.maximum(left / tokens_per_s, self._step_s)
        first_s = next_s + np.where(prices.ends[1:] <= budget, 0.0, later_s)
        self._wait(view, prompts, first_s, next_s)
        first_s += view.in_flight_s
        self._first_s = dict(zip(prompts.requests, first_s.tolist(), strict=True))

    def _wait(
        self,
        view: SchedulerView,
        prompts: Facts,
        first_s: np.ndarray,
        next_s: float,
    ) -> None:
        """Delays `first_s` `[P]` of prompts until there are slots and pages."""
        is_held = prompts.is_running > 0
        pages = np.ceil(prompts.tokens / view.ledger.page_size)
        slots, free = float(view.num_free_slots), float(view.ledger.num_available)
        if pages.sum() <= free and len(pages) - is_held.sum() <= slots:
            return
        ending = [
            (one.expected_tokens_left * self._step_s, len(one.pages))
            for one in view.decodes
        ]
        heapq.heapify(ending)
        begin_s, answers_s = 0.0, (prompts.answer_tokens * self._step_s).tolist()
        for i, (need, held) in enumerate(zip(pages, is_held, strict=True)):
            while ending and not held and (slots < 1 or free < need):
                end_s, back = heapq.heappop(ending)
                begin_s, free, slots = max(begin_s, end_s), free + back, slots + 1
            slots, free = slots - (not held), free - need
            first_s[i] = max(first_s[i], begin_s + next_s)
            heapq.heappush(ending, (first_s[i] + answers_s[i], need))

    def points(self, request: Request) -> tuple[float, float, float]:
        """Returns first token, worst gap and last token, seconds from the start."""
        first_s = self._first_s[request]
        num_gaps = max(request.expected_tokens_left - 1, 0)
        worst_s = self._recent.longest_s(num_gaps) if num_gaps else 0.0
        return first_s, worst_s, first_s + num_gaps * self._step_s

    def alone_s(self, request: Request) -> float:
        """Returns the first token's time if nothing else waited, seconds."""
        return float(self._steps.alone_s(facts_of([request]))[0])
