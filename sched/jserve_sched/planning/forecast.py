"""Forecaster: quantiles of what a pass over the queue gives, from how it has erred.

P50 and P90 are quantiles of the ratios of actual to forecast times of the last requests
of the class, so that half are below P50 and nine in ten below P90 whatever the pass
leaves out: requests yet to come, lengths, errors of the predictor (split conformal
prediction: Papadopoulos et al., 2002, with the ratio as score). Those that wait longest
report last, so a first token counts as late as soon as its P90 has passed.
"""

import bisect
import collections
import heapq
import math
from collections.abc import Iterable

from jserve_sched.planning.queue_pass import QueuePass
from jserve_sched.requests.forecast import Forecast
from jserve_sched.requests.request import Request

_NUM_RATIOS = 64  # that are remembered of each class
_PRIOR = (0.7, 0.85, 0.95, 1.0, 1.0, 1.05, 1.15, 1.3, 1.6)  # until there are so many
_OVERDUE = 2.5  # times its P90 that a first token is then taken for
_GUESSED = 3  # powers of these that the ends of answers of guessed length begin with


class Forecaster:
    """Makes forecasts, and learns from what became of them."""

    def __init__(self) -> None:
        self._ratios = dict[tuple[str, bool, int], collections.deque[float]]()
        # Time of the last token and the worst gap of those that have begun to answer.
        self._begun: dict[Request, tuple[float, float]] = {}
        self._due: list[tuple[float, str, Request]] = []  # when P90 of a TTFT passes

    def _recent(self, request: Request, index: int) -> collections.deque[float]:
        """Returns the ratios of first tokens, worst gaps or last tokens (0, 1, 2)."""
        is_guess = bool(request.stop_token_ids)
        power = _GUESSED if is_guess and index == 2 else 1
        prior = collections.deque((one**power for one in _PRIOR), _NUM_RATIOS)
        key = request.service_class, is_guess, index
        return self._ratios.setdefault(key, prior)

    def of(self, request: Request, run: QueuePass) -> Forecast:
        """Returns the forecast of a request of a pass."""
        points, slo = run.points(request), request.slo
        age_s = run.now_s - request.arrival_s
        ranked = [sorted(self._recent(request, index)) for index in range(3)]
        (ttft_s, late_ttft_s), gaps_s, (ttlt_s, late_ttlt_s) = (
            (since_s + at_s * _quantile(one, 0.5), since_s + at_s * _quantile(one, 0.9))
            for since_s, at_s, one in zip(
                (age_s, 0, age_s), points, ranked, strict=True
            )
        )

        def chance(index: int, left_s: float) -> float:
            ratio = left_s / max(points[index], 1e-4)
            share = bisect.bisect_right(ranked[index], ratio) + 0.5
            return share / (len(ranked[index]) + 1)

        chances = {}
        if slo.ttft_s is not None:
            chances["ttft_s"] = chance(0, slo.ttft_s - age_s)
            if slo.tbt_s is not None:  # the first token's slack is left for a gap
                chances["tbt_s"] = chance(1, slo.tbt_s + max(slo.ttft_s - ttft_s, 0.0))
        if slo.ttlt_s is not None:
            chances["ttlt_s"] = chance(2, slo.ttlt_s - age_s)
        # When another like it would have even odds, if not too late even alone.
        num_left = max(request.expected_tokens_left - 1, 0)
        first_s, last_s = slo.deadline_s(0.0, 0), slo.deadline_s(0.0, num_left)
        late_s: float | None = max(ttft_s - first_s, ttlt_s - last_s, 0.0)
        if late_s:
            least_s = run.alone_s(request)
            if least_s >= first_s or least_s + points[2] - points[0] >= last_s:
                late_s = None
        return Forecast(
            (ttft_s, late_ttft_s),
            gaps_s,
            (max(ttft_s, ttlt_s), max(late_ttft_s, late_ttlt_s)),
            chances,
            late_s,
            run.now_s,
            points,
        )

    def enter(self, request: Request) -> None:
        """Expects the first token of a request that was submitted."""
        if request.forecast is not None:
            heapq.heappush(self._due, (_due_s(request), request.request_id, request))

    def learn(
        self, outputs: Iterable[tuple[Request, object]], now_s: float | None
    ) -> None:
        """Compares forecasts with the tokens that came now, clock seconds."""
        if now_s is None:
            return
        while self._due and self._due[0][0] < now_s:
            due_s, _, late = heapq.heappop(self._due)
            if late not in self._begun and late.finish_reason is None:
                made_s = late.forecast.made_s if late.forecast else due_s
                self._add(late, 0, _OVERDUE * (due_s - made_s))
        for request, _ in outputs:
            if (forecast := request.forecast) is None:
                continue
            taken_s = now_s - forecast.made_s
            if (before := self._begun.get(request)) is None:
                worst_s = 0.0
                if now_s <= _due_s(request):  # else it counts already
                    self._add(request, 0, taken_s)
            else:
                worst_s = max(before[1], now_s - before[0])
            self._begun[request] = now_s, worst_s
            if request.finish_reason is not None:
                self.forget(request)
                # Of an answer taken to be as long as it may be nothing is learned.
                if not request.stop_token_ids or (
                    request.first_predicted_tokens < request.max_tokens
                ):
                    self._add(request, 1, worst_s)
                    self._add(request, 2, taken_s)

    def _add(self, request: Request, index: int, actual_s: float) -> None:
        """Adds a ratio, to be learned from."""
        assert request.forecast is not None
        if (point_s := request.forecast.points[index]) > 0:
            self._recent(request, index).append(actual_s / point_s)

    def forget(self, request: Request) -> None:
        """Learns nothing more from a request."""
        self._begun.pop(request, None)


def _due_s(request: Request) -> float:
    assert request.forecast is not None
    return request.arrival_s + request.forecast.ttft_s[1]


def _quantile(ranked: list[float], share: float) -> float:
    """Returns the value that a share of the next ones should not exceed."""
    return ranked[min(math.ceil((len(ranked) + 1) * share), len(ranked)) - 1]
