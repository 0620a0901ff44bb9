"""QueuePass: when the prompts of a snapshot will be computed, by coarse steps.

Prompts go in the policy's own order, each step with as many seconds of prefill as
recent steps had that left work for later. What such steps did stands for all that a
policy minds when it sizes them: one decode without slack makes one of them short, not
all. Requests yet to come take part, so that those the policy would prefer overtake: the
last arrivals, thinned to their mean rate. A prompt waits for a slot and for the pages
of all of it, which what runs gives back when its answer ends.
"""

import heapq
import math
from collections.abc import Callable, Sequence

import numpy as np

from jserve_sched.planning.recent_load import RecentLoad
from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.facts import Facts, facts_of
from jserve_sched.requests.request import Request
from jserve_sched.steps.plan import Row

Order = Callable[[SchedulerView, StepPrices, Facts], np.ndarray]
"""Returns the places `[P]` of prompts in the order in which a policy takes them."""

_LEAST_S = 1e-4


class QueuePass:
    """The coarse steps that compute the prompts of one snapshot.

    Attributes:
      now_s: Time of the snapshot, clock seconds, from which all times count.
      step_s: Usual time between two tokens of an answer, seconds.
    """

    def __init__(
        self,
        view: SchedulerView,
        order: Order,
        recent: RecentLoad,
        extra: Sequence[Request] = (),
    ):
        """Runs the pass over what waits, and `extra` requests that come now."""
        begun = set(view.begun)
        self._decodes = [one for one in view.running if one not in begun]
        rows = [Row(one, one.num_dispatched_tokens, 1, True) for one in self._decodes]
        self.now_s, self._view = view.now_s, view
        self._steps = StepPrices(view, rows)
        size = self._steps.block_tokens
        self._most_tokens = max(self._steps.max_blocks, 1) * size

        # What a step takes without prefill, and the prefill that it has, in seconds.
        ends = np.array([0.0, self._most_tokens])
        columns = self._steps.columns(np.zeros(2), ends)
        prices_s = self._steps.predict(self._steps.matrix(columns))
        least_s, full_s = map(float, prices_s)
        self._least_s, self._token_s = least_s, (full_s - least_s) / self._most_tokens
        self._room_s = recent.prefill_s(view.predictor) or full_s - least_s
        self._room_s = max(self._room_s, _LEAST_S)
        self.step_s = recent.step_s or least_s
        self._recent = recent

        # All prompts, those yet to come last.
        waiting = view.queue.facts
        asked = facts_of([*view.begun, *extra])
        prompts = waiting.before(asked) if asked.requests else waiting
        self._num_real = len(prompts.requests)
        work_s = self._work_s(prompts)
        coming = self._coming(recent, float(work_s.sum()))
        if coming is not None:
            prompts = prompts.before(coming)
            work_s = np.concatenate((work_s, self._work_s(coming)))
        self._place = {
            one: i for i, one in enumerate(prompts.requests[: self._num_real])
        }
        self._work = work_s
        self._first_s = self._run(prompts, work_s, order(view, self._steps, prompts))

    def _work_s(self, prompts: Facts) -> np.ndarray:
        """Returns `[P]` seconds that prompts add to steps that run anyhow.

        A prompt of less than a step shares it: its padding does not count.
        """
        num_steps = np.maximum(np.ceil(prompts.tokens / self._most_tokens), 1.0)
        own_s = self._steps.alone_s(prompts) - self._least_s * num_steps
        shared_s = np.where(num_steps > 1, np.inf, prompts.tokens * self._token_s)
        found: np.ndarray = np.maximum(np.minimum(own_s, shared_s), _LEAST_S)
        return found

    def _coming(self, recent: RecentLoad, work_s: float) -> Facts | None:
        """Returns the last arrivals as those to come while the queue is worked off.

        All of them come within that time, mirrored, each with a share of its tokens:
        what would come at their mean rate.
        """
        if len(recent.arrivals) < 2:
            return None
        requests, rows = zip(*recent.arrivals, strict=True)
        columns = np.array(rows).T
        ages_s = self.now_s - columns[2]
        horizon_s = 2.0 * (1.0 + self._least_s / self._room_s) * work_s
        share = min(horizon_s / max(float(ages_s[0]), _LEAST_S), 1.0)
        if share * len(rows) < 0.5:
            return None
        columns[:4] += ages_s * (1.0 + share)
        coming = Facts(requests, *columns)
        return coming._replace(start=coming.known_tokens - share * coming.tokens)

    def _run(
        self, prompts: Facts, work_s: np.ndarray, places: np.ndarray
    ) -> np.ndarray:
        """Returns `[P]` when prompts are computed, seconds from the snapshot."""
        view, least_s, room_s = self._view, self._least_s, self._room_s
        left = work_s[places].tolist()
        is_begun, size = prompts.is_running > 0, view.ledger.page_size
        own_tokens = prompts.known_tokens - np.where(is_begun, 0.0, prompts.start)
        pages = np.ceil(own_tokens / size)[places].tolist()
        is_held = is_begun[places].tolist()
        answer_s = (prompts.answer_tokens[places] * self.step_s).tolist()
        is_real = (places < self._num_real).tolist()
        release = np.maximum(prompts.arrival_s[places] - view.start_s, 0.0).tolist()
        first = [math.inf] * len(left)
        # Ranks that are there, and those that come, the next one last.
        ready = [rank for rank, real in enumerate(is_real) if real]
        coming = [rank for rank, real in enumerate(is_real) if not real]
        coming.sort(key=release.__getitem__, reverse=True)
        slots, free = float(view.num_free_slots), float(view.ledger.num_available)
        for one in view.begun:  # the pages that they still need
            free -= max(-(-one.num_known_tokens // size) - len(one.pages), 0)
        ending: list[tuple[float, float]] = []  # of what is computed, and of decodes
        has_decodes = False
        num_left, now_s = len(ready), 0.0
        while num_left:
            while coming and release[coming[-1]] <= now_s:
                heapq.heappush(ready, coming.pop())
            room, done = room_s, list[int]()
            is_blocked = False
            while ready and room > 0.0:
                rank = ready[0]
                if not is_held[rank]:
                    if slots < 1 or free < pages[rank]:
                        if not has_decodes:
                            ending += self._ending()
                            heapq.heapify(ending)
                            has_decodes = True
                        if not ending and done:
                            is_blocked = True  # until this step ends
                            break
                        if not ending:
                            free = slots = math.inf
                        elif ending[0][0] <= now_s:
                            free += heapq.heappop(ending)[1]
                            slots += 1.0
                        else:
                            is_blocked = True
                            break
                        continue
                    is_held[rank] = True
                    slots -= 1
                    free -= pages[rank]
                if left[rank] > room:
                    left[rank] -= room
                    room = 0.0
                else:
                    room -= left[rank]
                    done.append(heapq.heappop(ready))
            if is_blocked and room == room_s:
                now_s = ending[0][0]
                continue
            now_s += least_s + room_s - room
            if not done and ready and (rank := ready[0]) >= 0 and left[rank] > room_s:
                # A long prompt: all its steps until another may come first.
                until_s = release[coming[-1]] - now_s if coming else math.inf
                whole = min(
                    left[rank] // room_s, max(until_s, 0.0) // (least_s + room_s)
                )
                left[rank] -= whole * room_s
                now_s += whole * (least_s + room_s)
            for rank in done:
                first[rank] = now_s
                num_left -= is_real[rank]
                heapq.heappush(ending, (now_s + answer_s[rank], pages[rank]))
        found = np.empty(len(left))
        found[places] = first
        return found + view.in_flight_s

    def _ending(self) -> list[tuple[float, float]]:
        """Returns when decodes end, and what pages they give back."""
        return [
            (one.expected_tokens_left * self.step_s, float(len(one.pages)))
            for one in self._decodes
        ]

    def points(self, request: Request) -> tuple[float, float, float]:
        """Returns first token, worst gap and last token, seconds from the start."""
        first_s = float(self._first_s[self._place[request]])
        num_gaps = max(request.expected_tokens_left - 1, 0)
        worst_s = self._recent.longest_s(num_gaps) if num_gaps else 0.0
        return first_s, worst_s, first_s + num_gaps * self.step_s

    def alone_s(self, request: Request) -> float:
        """Returns the first token's time if nothing else waited, seconds."""
        work_s = float(self._work[self._place[request]])
        return work_s + math.ceil(work_s / self._room_s) * self._least_s
