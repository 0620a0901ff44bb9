"""Forecaster: quantiles of what a pass over the queue gives, from how it has erred.

P50 and P90 are quantiles of the ratios of actual to forecast times of the last requests
of the class, late ones apart, so that half are below P50 and nine in ten below P90
whatever the pass leaves out (conformal prediction: Vovk et al., 2005, with the ratio as
score). They hold the errors of the predictor and of the lengths too. Those that wait
longest report last, so a time counts as over its quantile as soon as it is.
"""

import bisect
import collections
import dataclasses
import heapq
import math
from collections.abc import Iterable

from jserve_sched.planning.queue_pass import QueuePass
from jserve_sched.requests.forecast import Forecast
from jserve_sched.requests.request import Request

_NUM_RATIOS = 128  # that are remembered of each class
_PRIOR = (0.7, 0.85, 0.95, 1.0, 1.0, 1.05, 1.15, 1.3, 1.6)  # until there are so many
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


@dataclasses.dataclass(eq=False, slots=True)
class _Open:
    """A request that was forecast and has not ended, with what came of it so far."""

    forecast: Forecast
    is_awaited: list[bool] = dataclasses.field(default_factory=lambda: [True] * 3)
    last_s: float = 0.0
    worst_s: float = 0.0


class Forecaster:
    """Makes forecasts, and learns from what became of them."""

    def __init__(self) -> None:
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
            _, _, late, index, place = heapq.heappop(self._due)
            if late.is_awaited[index]:  # it takes longer, however long
                ratios = self._ratios[(*late.forecast.key, index)]
                ratios.move(place, 0.0)
                if place:
                    ratios.add(late.forecast.pairs[index][1] * _OVERDUE)
        for request, _ in outputs:
            if (one := self._open.get(request)) is None:
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
        one = self._open.pop(request, None)
        if one is not None:
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
