"""Forecast: when a request's tokens will come, and whether its SLO will be attained.

One pass over the queue runs coarse steps: prompts in the policy's own order, each step
with as many seconds of prefill as recent steps had that left work for later. What such
steps did stands for all that a policy minds when it sizes them: one decode without
slack makes one of them short, not all. Requests yet to come take part: the last
arrivals, mirrored in time, so that those the policy would prefer overtake as often as
they did of late. A prompt also waits for a slot and for the pages of all of it.

The pass gives points. Their quantiles are those of the ratios of actual to forecast
times of the last requests of the class, so that half are below P50 and nine in ten
below P90 whatever the pass leaves out (conformal prediction: Vovk et al., 2005, with
the ratio as score). They hold the errors of the predictor and of the lengths too.
"""

import bisect
import collections
import dataclasses
import heapq
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from jserve_sched.planning.recent_load import RecentLoad
from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.facts import Facts, facts_of
from jserve_sched.requests.forecast import Forecast
from jserve_sched.requests.request import Request
from jserve_sched.steps.plan import Row

Order = Callable[[SchedulerView, StepPrices, Facts], np.ndarray]
"""Returns the places `[P]` of prompts in the order in which a policy takes them."""

_NUM_RATIOS = 128  # that are remembered of each class
_PRIOR = (0.7, 0.85, 0.95, 1.0, 1.0, 1.05, 1.15, 1.3, 1.6)  # until there are so many
_MOST_PROMPTS = 512  # of the queue that one pass looks at; of more, every n-th
_SHARES = (0.5, 0.9)
_OVERDUE = 1.5  # times its P90 that a time is taken for while it is over that
_PACE = 0.03  # by which a level moves with each request
_LEAST_S = 1e-4


class Ratios:
    """The last ratios of actual to forecast times, and which of them are P50 and P90.

    The levels of both move until so many of the actual times are below, as adaptive
    conformal inference does (Gibbs and Candes, 2021).
    """

    def __init__(self) -> None:
        self._recent = collections.deque(_PRIOR)
        self._sorted = list(_PRIOR)
        self._num_added = 0
        self._levels = [*_SHARES]

    @property
    def pair(self) -> tuple[float, float]:
        """The ratios that are P50 and P90."""
        most = len(self._sorted)
        p50, p90 = (
            self._sorted[min(math.ceil((most + 1) * level), most) - 1]
            for level in self._levels
        )
        return p50, max(p50, p90)

    def add(self, ratio: float) -> None:
        """Adds a ratio, in place of one of the prior's while there are any."""
        self._recent.append(ratio)
        bisect.insort(self._sorted, ratio)
        self._num_added += 1
        if self._num_added <= len(_PRIOR) or len(self._recent) > _NUM_RATIOS:
            oldest = self._recent.popleft()
            del self._sorted[bisect.bisect_left(self._sorted, oldest)]

    def move(self, place: int, below: float) -> None:
        """Moves the level of P50 or P90, since a time was below it (1) or not (0)."""
        level = self._levels[place] + _PACE * (_SHARES[place] - below)
        self._levels[place] = min(max(level, 0.02), 0.99)

    def share_below(self, ratio: float) -> float:
        """Returns the share of the next ratios that should be below one."""
        below = bisect.bisect_right(self._sorted, ratio)
        return (below + 0.5) / (len(self._sorted) + 1)


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
        stride = -(-len(waiting.requests) // _MOST_PROMPTS) or 1
        if stride > 1:
            waiting = waiting.take(np.arange(0, len(waiting.requests), stride))
        asked = facts_of([*view.begun, *extra])
        prompts = waiting.before(asked) if asked.requests else waiting
        self._num_real = len(prompts.requests)
        work_s = self._work_s(prompts) * stride
        coming = self._coming(recent, float(work_s.sum()))
        if coming is not None:
            prompts = prompts.before(coming)
            work_s = np.concatenate((work_s, self._work_s(coming)))
        self._place = {
            one: i for i, one in enumerate(prompts.requests[: self._num_real])
        }
        self._work = work_s
        self._first_s = self._run(
            prompts, work_s, order(view, self._steps, prompts), stride
        )

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
        self, prompts: Facts, work_s: np.ndarray, places: np.ndarray, stride: int
    ) -> np.ndarray:
        """Returns `[P]` when prompts are computed, seconds from the snapshot."""
        view, least_s, room_s = self._view, self._least_s, self._room_s
        left = work_s[places].tolist()
        pages = np.ceil((prompts.known_tokens - prompts.start) / view.ledger.page_size)
        pages = np.where(prompts.is_running > 0, 0.0, pages)[places].tolist()
        is_held = (prompts.is_running > 0)[places].tolist()
        answer_s = (prompts.answer_tokens[places] * self.step_s).tolist()
        is_real = (places < self._num_real).tolist()
        release = np.maximum(prompts.arrival_s[places] - view.start_s, 0.0).tolist()
        first = [math.inf] * len(left)
        # Ranks that are there, and those that come, the next one last.
        ready = [rank for rank, real in enumerate(is_real) if real]
        coming = [rank for rank, real in enumerate(is_real) if not real]
        coming.sort(key=release.__getitem__, reverse=True)
        slots, free = float(view.num_free_slots), float(view.ledger.num_available)
        ending: list[tuple[float, float]] = []  # of what is computed, and of decodes
        has_decodes = False
        num_left, now_s = len(ready), 0.0
        while num_left:
            while coming and release[coming[-1]] <= now_s:
                heapq.heappush(ready, coming.pop())
            room, done = room_s, []
            is_blocked = False
            while ready and room > 0.0:
                rank = ready[0]
                if not is_held[rank]:
                    if slots < stride or free < pages[rank] * stride:
                        if not has_decodes:
                            ending += self._ending()
                            heapq.heapify(ending)
                            has_decodes = True
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
                    slots -= stride
                    free -= pages[rank] * stride
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


@dataclasses.dataclass(eq=False, slots=True)
class _Open:
    """A request that was forecast and has not ended, with what came of it so far."""

    forecast: Forecast
    is_awaited: list[bool] = dataclasses.field(default_factory=lambda: [True] * 3)
    last_s: float = 0.0
    worst_s: float = 0.0


class Forecaster:
    """Makes forecasts, and learns from what became of them."""

    def __init__(self, recent: RecentLoad):
        self._recent = recent
        self._ratios = collections.defaultdict[tuple[object, ...], Ratios](Ratios)

        self._open: dict[Request, _Open] = {}
        # When times will be over their P50 or P90, the next one first.
        self._due: list[tuple[float, int, _Open, int, int]] = []
        self._num_due = 0

    def of(self, request: Request, run: QueuePass) -> Forecast:
        """Returns the forecast of a request of a pass."""
        points, now_s = run.points(request), run.now_s
        slo, age_s = request.slo, now_s - request.arrival_s
        num_left = max(request.expected_tokens_left - 1, 0)
        first_left_s = slo.deadline_s(0.0, 0) - age_s
        last_left_s = slo.deadline_s(0.0, num_left) - age_s
        is_late = points[0] > first_left_s or points[2] > last_left_s
        key = (request.service_class, bool(request.stop_token_ids), is_late)
        first, gap, last = (self._ratios[(*key, i)] for i in range(3))
        pairs = first.pair, gap.pair, last.pair

        def pair(index: int, from_s: float) -> tuple[float, float]:
            p50, p90 = pairs[index]
            return from_s + points[index] * p50, from_s + points[index] * p90

        ttft_s, gap_s, ttlt_s = pair(0, age_s), pair(1, 0.0), pair(2, age_s)
        ttlt_s = max(ttft_s[0], ttlt_s[0]), max(ttft_s[1], ttlt_s[1])
        chances = {}
        if slo.ttft_s is not None:
            left_s = slo.ttft_s - age_s
            chances["ttft_s"] = first.share_below(left_s / points[0])
            if slo.tbt_s is not None:  # the first token's slack is left for a gap
                room_s = slo.tbt_s + max(slo.ttft_s - ttft_s[0], 0.0)
                chances["tbt_s"] = gap.share_below(room_s / max(points[1], _LEAST_S))
        if slo.ttlt_s is not None:
            chances["ttlt_s"] = last.share_below((slo.ttlt_s - age_s) / points[2])
        late_s = max(
            points[0] * pairs[0][0] - first_left_s,
            points[2] * pairs[2][0] - last_left_s,
        )
        alone_s = run.alone_s(request)
        is_possible = alone_s < first_left_s + age_s and (
            alone_s + points[2] - points[0] < last_left_s + age_s
        )
        return Forecast(
            ttft_s,
            gap_s,
            ttlt_s,
            chances,
            max(late_s, 0.0) if late_s <= 0 or is_possible else None,
            now_s,
            points,
            pairs,
            key,
        )

    def enter(self, request: Request) -> None:
        """Expects what the forecast of a request that was submitted says."""
        if (forecast := request.forecast) is None:
            return
        one = self._open[request] = _Open(forecast)
        for index in (0, 2):
            for place, ratio in enumerate(forecast.pairs[index]):
                due_s = forecast.made_s + forecast.points[index] * ratio
                self._num_due += 1
                entry = (due_s, self._num_due, one, index, place)
                heapq.heappush(self._due, entry)

    def learn(
        self, outputs: Iterable[tuple[Request, object]], now_s: float | None
    ) -> None:
        """Compares forecasts with the tokens that came now, clock seconds."""
        if now_s is None:
            return
        while self._due and self._due[0][0] < now_s:
            _, _, one, index, place = heapq.heappop(self._due)
            if one.is_awaited[index]:  # it takes longer, however long
                ratios = self._ratios[(*one.forecast.key, index)]
                ratios.move(place, 0.0)
                if place:
                    ratios.add(one.forecast.pairs[index][1] * _OVERDUE)
        for request, _ in outputs:
            one = self._open.get(request)
            if one is None:
                continue
            if one.is_awaited[0]:
                self._settle(one, 0, now_s - one.forecast.made_s)
            else:
                one.worst_s = max(one.worst_s, now_s - one.last_s)
            one.last_s = now_s
            if request.finish_reason is not None:
                self._settle(one, 1, one.worst_s)
                self._settle(one, 2, now_s - one.forecast.made_s)
                del self._open[request]

    def forget(self, request: Request) -> None:
        """Learns nothing more from a request that was cancelled."""
        if one := self._open.pop(request, None):
            one.is_awaited = [False] * 3

    def _settle(self, one: _Open, index: int, actual_s: float) -> None:
        one.is_awaited[index] = False
        point_s = one.forecast.points[index]
        if point_s <= 0:
            return
        ratios = self._ratios[(*one.forecast.key, index)]
        ratio = actual_s / point_s
        ratios.add(ratio)
        for place, other in enumerate(one.forecast.pairs[index]):
            if ratio <= other or index == 1:  # else it was overdue before
                ratios.move(place, (ratio < other) / 2 + (ratio <= other) / 2)
