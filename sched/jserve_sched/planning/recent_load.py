"""What the last requests and steps were like, for those that are to come."""

import collections
import math

from jserve_sched.requests.request import Request
from jserve_sched.steps import features
from jserve_sched.steps.plan import StepPlan

_NUM_REQUESTS = 256  # whose SLOs stand for those of requests to come
_ONE_IN = 20  # one request in 20 is tighter
_MEMORY = 0.98  # of the past at each step: about the last 50 count
_NUM_STEPS = 128  # whose durations are remembered


class RecentLoad:
    """How soon requests want their first token, and how fast a queue is worked off.

    `tight_ttft_s` is the 5th percentile of the times from arrival to when the last
    requests wanted their first token; infinite if none did. Not the least: one client
    with a tight SLO must not make every step short.
    """

    def __init__(self) -> None:
        self.tight_ttft_s = math.inf
        self._ttft_s: collections.deque[float] = collections.deque(maxlen=_NUM_REQUESTS)
        self._tokens = 0.0
        self._time_s = 0.0
        self._steps_s = collections.deque[float](maxlen=_NUM_STEPS)

    def add_request(self, request: Request) -> None:
        """Takes a new request into account."""
        self._ttft_s.append(request.pacing.first_s - request.arrival_s)
        ranked = sorted(self._ttft_s)
        self.tight_ttft_s = ranked[len(ranked) // _ONE_IN]

    def add_step(self, plan: StepPlan, duration_s: float) -> None:
        """Takes a step into account."""
        self._steps_s.append(duration_s)
        if plan.leaves_work:
            num_tokens = float(plan.features[features.PREFILL_TOKENS])
            self._tokens = self._tokens * _MEMORY + num_tokens
            self._time_s = self._time_s * _MEMORY + duration_s

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Prompt tokens per second of recent such steps; None before the first."""
        return self._tokens / self._time_s if self._tokens > 0 else None

    @property
    def step_s(self) -> float | None:
        """Mean duration of the last steps, seconds; None before the first."""
        return sum(self._steps_s) / len(self._steps_s) if self._steps_s else None

    def longest_s(self, num_steps: int) -> float:
        """Returns what the longest of so many steps takes, in the median; seconds.

        The longest that is remembered does not count: one stall is not yet usual.
        """
        ranked = sorted(self._steps_s)[:-1]
        place = int(0.5 ** (1 / num_steps) * len(ranked))
        return ranked[min(place, len(ranked) - 1)] if ranked else 0.0
