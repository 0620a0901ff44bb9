"""What happens in a simulation, noted as it happens: steps, token times, violations.

A violated SLO is counted as soon as it is certain, so a run whose question is answered
can stop.
"""

import dataclasses
import heapq
from collections.abc import Sequence

import numpy as np

from jserve_sched import features
from jserve_sched.cost_model import CostModel
from jserve_sched.report import Failure, Outcome
from jserve_sched.request import Request
from jserve_sched.workload import Arrival


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedStep:
    """One step, as a report and a demand want it.

    Attributes:
      start_s: Virtual time of its start, seconds.
      duration_s: Virtual time that it took, seconds.
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

    @property
    def num_rows(self) -> int:
        """Decode rows compiled."""
        return int(self.features[features.NUM_ROWS])

    @property
    def num_blocks(self) -> int:
        """Prefill blocks compiled."""
        return int(self.features[features.NUM_BLOCKS])

    @property
    def used_rows(self) -> int:
        """Decode rows used."""
        return int(self.features[features.NUM_DECODES])

    @property
    def decode_pages(self) -> int:
        """KV pages of the longest decode; 0 without one."""
        return int(self.features[features.DECODE_PAGES])

    @property
    def block_pages(self) -> int:
        """KV pages of the longest chunk; 0 without one."""
        return int(self.features[features.BLOCK_PAGES])

    @property
    def prefill_tokens(self) -> int:
        """Real prefill tokens."""
        return int(self.features[features.PREFILL_TOKENS])


def priced(
    steps: Sequence[SimulatedStep], cost_model: CostModel, block_tokens: int
) -> list[SimulatedStep]:
    """Returns the steps with their costs, as they ran and without padding."""
    if not steps:
        return []
    matrix = np.stack([one.features for one in steps])
    bare = matrix.copy()
    bare[:, features.NUM_ROWS] = matrix[:, features.NUM_DECODES]
    bare[:, features.NUM_BLOCKS] = [one.used_blocks for one in steps]
    bucket_s = cost_model.step_s(matrix, block_tokens).tolist()
    used_s = cost_model.step_s(bare, block_tokens).tolist()
    return [
        dataclasses.replace(one, bucket_s=bucket, used_s=used)
        for one, bucket, used in zip(steps, bucket_s, used_s, strict=True)
    ]


class Tally:
    """Token times of every request, and how many requests are late for sure."""

    def __init__(self, arrivals: Sequence[Arrival], num_uncounted: int):
        self.arrivals = arrivals
        self.token_times_s: list[list[float]] = [[] for _ in arrivals]
        self.failures: dict[int, Failure] = {}
        self._index = {one.request_id: i for i, one in enumerate(arrivals)}
        if len(self._index) < len(arrivals):
            raise ValueError("two arrivals have the same request_id")
        self._num_uncounted = num_uncounted
        self._violated: set[int] = set()
        self._due = [
            (one.slo.token_deadline_s(one.arrival_s, 0), i)
            for i, one in enumerate(arrivals[num_uncounted:], num_uncounted)
        ]
        heapq.heapify(self._due)

    def times_of(self, request: Request) -> list[float]:
        """Returns the list that takes a request's token times, seconds."""
        return self.token_times_s[self._index[request.request_id]]

    def fail(self, arrival: Arrival, failure: Failure) -> None:
        """Notes that a request was turned away."""
        index = self._index[arrival.request_id]
        self.failures[index] = failure
        self._violated.add(index)

    def finish(self, request: Request) -> None:
        """Notes that a request ran to its end."""
        index = self._index[request.request_id]
        one = self.arrivals[index]
        times_s = self.token_times_s[index]
        if not one.slo.is_met(one.arrival_s, times_s, is_complete=True):
            self._violated.add(index)

    def num_violations(self, now_s: float) -> int:
        """Returns how many counted requests have violated their SLO by now."""
        while self._due and self._due[0][0] < now_s:
            due_s, index = heapq.heappop(self._due)
            times_s = self.token_times_s[index]
            if not times_s or times_s[0] > due_s:
                self._violated.add(index)
        return sum(index >= self._num_uncounted for index in self._violated)

    def outcomes(self) -> list[Outcome]:
        """Returns what every request experienced; those without an end failed."""
        found = []
        for index, one in enumerate(self.arrivals):
            times_s = self.token_times_s[index]
            failure = self.failures.get(index)
            if failure is None and len(times_s) < one.max_tokens:
                failure = Failure.UNFINISHED
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
