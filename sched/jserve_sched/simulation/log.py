"""What happens in a simulation, noted as it happens: steps, token times, violations.

A violated SLO is counted as soon as it is certain, so a run whose question is answered
can stop.
"""

import dataclasses
import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jserve_sched.outcomes import Failure, Outcome
from jserve_sched.requests.forecast import Forecast
from jserve_sched.requests.request import FinishReason, Request
from jserve_sched.simulation.workload import Arrival
from jserve_sched.steps import features
from jserve_sched.steps.plan import StepPlan
from jserve_sched.steps.record import StepRecord, recorded_sizes
from jserve_sched.timing.predictor import Predict

_FACTS = (  # of a record, those known when a step is launched
    *("end_s", "duration_s", "plan_s", "predicted_s"),
    *("used_blocks", "ended_by", "leaves_work", "step_id"),
)


class Recording:
    """The steps of all engines, made into records at the end.

    They are priced then, all by one call: a call for each would take longest.
    """

    def __init__(self) -> None:
        self._matrix: list[np.ndarray] = []
        self._facts: list[tuple[Any, ...]] = []

    def add(
        self, plan: StepPlan, times_s: tuple[float, float, float], step_id: int
    ) -> None:
        """Adds a step; `times_s` are the first three of `_FACTS`."""
        facts = (plan.predicted_s, plan.num_blocks, plan.ended_by.value)
        self._matrix.append(plan.features)
        self._facts.append((*times_s, *facts, plan.leaves_work, step_id))

    def records(self, step_s: Predict) -> tuple[list[StepRecord], np.ndarray]:
        """Returns the steps by their start, with prices, and features `[N, F]`."""
        matrix = np.reshape(self._matrix, (-1, features.NUM_FEATURES))
        if not len(matrix):
            return [], matrix
        facts = zip(*self._facts, strict=True)
        columns: dict[str, Sequence[Any]] = dict(zip(_FACTS, facts, strict=True))
        bare = features.without_padding(matrix, columns["used_blocks"])
        columns |= recorded_sizes(matrix)
        columns["bucket_s"] = step_s(matrix).tolist()
        columns["used_s"] = step_s(bare).tolist()
        rows = zip(*columns.values(), strict=True)
        steps = [StepRecord(**dict(zip(columns, row, strict=True))) for row in rows]
        order = np.argsort([step.start_s for step in steps], kind="stable")
        return [steps[place] for place in order.tolist()], matrix[order]


class Tally:
    """Token times of every request, and how many requests are late for sure.

    Attributes:
      returns: Times at which refused clients come back, and places of their requests; a
        heap.
    """

    def __init__(
        self, arrivals: Sequence[Arrival], num_uncounted: int, max_returns: int = 0
    ):
        self.returns: list[tuple[float, int]] = []
        self._arrivals = [*arrivals]
        self._max_returns = max_returns
        self._num_returns = [0] * len(arrivals)
        self._degraded: set[int] = set()
        self._token_times_s: list[list[float]] = [[] for _ in arrivals]
        self._failures: dict[int, Failure] = {}
        self._forecasts: list[tuple[float, float] | None] = [None for _ in arrivals]
        self._index = {one.request_id: i for i, one in enumerate(arrivals)}
        if len(self._index) < len(arrivals):
            raise ValueError("two arrivals have the same request_id")
        self._num_uncounted = num_uncounted
        self._violated: set[int] = set()
        self._due = [
            (one.slo.deadline_s(one.arrival_s, 0), i, 0)
            for i, one in enumerate(arrivals[num_uncounted:], num_uncounted)
        ]
        heapq.heapify(self._due)

    def fail(self, request: Request, failure: Failure, now_s: float) -> None:
        """Notes that a request was turned away."""
        index = self._index[request.request_id]
        back_s = now_s + (request.retry_after_s or 0.0)
        can_return = self._num_returns[index] < self._max_returns and back_s < math.inf
        if request.finish_reason is FinishReason.REFUSED and can_return:
            heapq.heappush(self.returns, (back_s, index))
        self._failures[index] = failure
        self._violated.add(index)

    def come_back(self) -> Arrival:
        """Returns the request of the client that comes back first, as it is then."""
        now_s, index = heapq.heappop(self.returns)
        one = dataclasses.replace(self._arrivals[index], arrival_s=now_s)
        self._arrivals[index] = one
        self._num_returns[index] += 1
        del self._failures[index]
        self._violated.discard(index)
        due_s = one.slo.deadline_s(now_s, 0)
        heapq.heappush(self._due, (due_s, index, self._num_returns[index]))
        return one

    def expect(self, forecast: Forecast, request: Request) -> None:
        """Notes the forecast of a request as it came."""
        self._forecasts[self._index[request.request_id]] = forecast.ttft_s

    def take(self, request: Request, time_s: float) -> None:
        """Notes when a request got its next token, seconds, and whether it ended."""
        index = self._index[request.request_id]
        one, own = self._arrivals[index], self._token_times_s[index]
        own.append(time_s)
        if request.is_degraded:
            self._degraded.add(index)
            self._violated.add(index)
        if request.finish_reason is not None and not one.slo.is_attained(
            one.arrival_s, own, is_complete=True
        ):
            self._violated.add(index)

    def num_violations(self, now_s: float) -> int:
        """Returns how many counted requests have violated their SLO by now."""
        while self._due and self._due[0][0] < now_s:
            due_s, index, num_returns = heapq.heappop(self._due)
            times_s = self._token_times_s[index]
            is_last = num_returns == self._num_returns[index]
            if is_last and (not times_s or times_s[0] > due_s):
                self._violated.add(index)
        return sum(index >= self._num_uncounted for index in self._violated)

    def outcomes(self) -> list[Outcome]:
        """Returns what every request experienced; those without an end failed."""
        found = []
        for index, one in enumerate(self._arrivals):
            times_s, failure = self._token_times_s[index], None
            if len(times_s) < one.max_tokens:
                failure = self._failures.get(index, Failure.UNFINISHED)
            found.append(
                Outcome(
                    service_class=one.service_class,
                    slo=one.slo,
                    arrival_s=one.arrival_s,
                    num_prompt_tokens=one.num_prompt_tokens,
                    max_tokens=one.max_tokens,
                    token_times_s=times_s,
                    failure=failure,
                    is_degraded=index in self._degraded,
                    num_returns=self._num_returns[index],
                    forecast_ttft_s=self._forecasts[index],
                )
            )
        return found
