"""What happens in a simulation, noted as it happens: steps, token times, violations.

A violated SLO is counted as soon as it is certain, so a run whose question is answered
can stop.
"""

import dataclasses
import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from jserve_sched.outcomes import Failure, Outcome
from jserve_sched.requests.request import Request
from jserve_sched.simulation.workload import Arrival
from jserve_sched.steps import features as columns
from jserve_sched.timing.predictor import Predict


def _whole(column: int) -> Any:
    """Returns a property that reads a feature as a whole number."""
    return property(lambda step: int(step.features[column]))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedStep:
    """One step, as a report and a demand want it.

    Attributes:
      start_s: Virtual time of its start, seconds.
      plan_s: Host time of planning it, seconds; 0 without a clock, and in a stretch
        advanced at once.
      bucket_s: Time by the cost model, seconds; 0 until it is priced.
      used_s: The same without padding, seconds.
      used_blocks: Blocks that held a real token.
      leaves_work: Whether prefill was left over for want of room.
      features: What it computed, `[F]`.
    """

    start_s: float
    duration_s: float
    plan_s: float = 0.0
    bucket_s: float = 0.0
    used_s: float = 0.0
    used_blocks: int
    leaves_work: bool
    features: np.ndarray

    @property
    def end_s(self) -> float:
        """Virtual time of its end, seconds."""
        return self.start_s + self.duration_s

    num_rows = _whole(columns.NUM_ROWS)
    num_blocks = _whole(columns.NUM_BLOCKS)
    used_rows = _whole(columns.NUM_DECODES)
    decode_pages = _whole(columns.DECODE_PAGES)
    block_pages = _whole(columns.BLOCK_PAGES)
    prefill_tokens = _whole(columns.PREFILL_TOKENS)


def priced(steps: Sequence[SimulatedStep], step_s: Predict) -> list[SimulatedStep]:
    """Returns the steps with their costs, as they ran and without padding."""
    if not steps:
        return []
    matrix = np.stack([one.features for one in steps])
    bare = matrix.copy()
    bare[:, columns.NUM_ROWS] = matrix[:, columns.NUM_DECODES]
    bare[:, columns.NUM_BLOCKS] = [one.used_blocks for one in steps]
    costs_s = np.stack([step_s(matrix), step_s(bare)], axis=-1).tolist()
    return [
        dataclasses.replace(one, bucket_s=bucket_s, used_s=used_s)
        for one, (bucket_s, used_s) in zip(steps, costs_s, strict=True)
    ]


class Tally:
    """Token times of every request, and how many requests are late for sure."""

    def __init__(self, arrivals: Sequence[Arrival], num_uncounted: int):
        self._arrivals = arrivals
        self._token_times_s: list[list[float]] = [[] for _ in arrivals]
        self._refused: set[int] = set()
        self._index = {one.request_id: i for i, one in enumerate(arrivals)}
        if len(self._index) < len(arrivals):
            raise ValueError("two arrivals have the same request_id")
        self._num_uncounted = num_uncounted
        self._violated: set[int] = set()
        self._due = [
            (one.slo.deadline_s(one.arrival_s, 0), i)
            for i, one in enumerate(arrivals[num_uncounted:], num_uncounted)
        ]
        heapq.heapify(self._due)

    def refuse(self, arrival: Arrival) -> None:
        """Notes that a request was turned away, since it can never run."""
        index = self._index[arrival.request_id]
        self._refused.add(index)
        self._violated.add(index)

    def take(self, request: Request, times_s: Sequence[float]) -> None:
        """Notes when a request got its next tokens, seconds, and whether it ended."""
        index = self._index[request.request_id]
        one, own = self._arrivals[index], self._token_times_s[index]
        own.extend(times_s)
        if request.finish_reason is not None and not one.slo.is_met(
            one.arrival_s, own, is_complete=True
        ):
            self._violated.add(index)

    def num_violations(self, now_s: float) -> int:
        """Returns how many counted requests have violated their SLO by now."""
        while self._due and self._due[0][0] < now_s:
            due_s, index = heapq.heappop(self._due)
            times_s = self._token_times_s[index]
            if not times_s or times_s[0] > due_s:
                self._violated.add(index)
        return sum(index >= self._num_uncounted for index in self._violated)

    def outcomes(self) -> list[Outcome]:
        """Returns what every request experienced; those without an end failed."""
        found = []
        for index, one in enumerate(self._arrivals):
            times_s, failure = self._token_times_s[index], None
            if len(times_s) < one.max_tokens:
                is_refused = index in self._refused
                failure = Failure.TOO_LONG if is_refused else Failure.UNFINISHED
            found.append(
                Outcome(
                    service_class=one.service_class,
                    slo=one.slo,
                    arrival_s=one.arrival_s,
                    num_prompt_tokens=one.num_prompt_tokens,
                    max_tokens=one.max_tokens,
                    token_times_s=times_s,
                    failure=failure,
                )
            )
        return found
