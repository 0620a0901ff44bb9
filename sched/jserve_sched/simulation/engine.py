"""One scheduler and the machine that it drives, in virtual time.

What a step gives is known when it is launched, but is applied only at the time at which
it ends, so that a snapshot in between holds what could be known then.

Overlap is as in the engine: with `lag` 0 a step is planned when the one before has
ended; with `lag` 1 the next step is planned when one starts, so a request that comes
during a step waits for the one after the next.

A stretch of decode steps between two events (an arrival, a last token, a missing page)
can only run the same rows again. With `lag` 0 such a stretch is advanced at
once; its steps are priced by one call, each as it would be alone.
"""

import collections
import math
from collections.abc import Sequence

import numpy as np

from jserve_sched.clock import Clock
from jserve_sched.requests.limits import TooLongError
from jserve_sched.requests.request import Request
from jserve_sched.scheduler import Scheduler
from jserve_sched.simulation.disturbance import Disturbed
from jserve_sched.simulation.log import Recording, Tally
from jserve_sched.simulation.workload import Arrival
from jserve_sched.steps import features
from jserve_sched.steps.plan import StepPlan, StepResult
from jserve_sched.timing.predictor import Predict, StepSample

_TOKEN, _STOP_TOKEN = 0, 1  # what answers are made of, and what ends some of them


def _steps_after(plan: StepPlan, num_steps: int, page_size: int) -> np.ndarray:
    """Returns features `[num_steps, F]` of the steps that repeat a decode-only plan."""
    matrix = np.repeat(plan.features[None], num_steps, axis=0)
    steps = np.arange(1, num_steps + 1)
    grown = steps * len(plan.decodes)
    matrix[:, features.DECODE_CONTEXT] += grown
    matrix[:, features.CACHED_TOKENS] += grown
    stops = np.array([row.stop for row in plan.decodes]) + steps[:, None]
    pages = -(-stops // page_size)
    matrix[:, features.DECODE_PAGES] = pages.sum(axis=1)
    matrix[:, features.LONGEST_DECODE] = pages.max(axis=1)
    return matrix


class SimulatedEngine:
    """A scheduler whose steps take virtual time.

    Attributes:
      due_s: Time of the next event: a step ends, or the next can start; infinite while
        nothing runs.
      num_steps: Steps run.
      busy_s: Virtual time of these steps, seconds.
      request_ids: Requests submitted here, in order.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        step_s: Predict,
        disturbed: Disturbed,
        tally: Tally,
        lag: int,
        recording: Recording | None,
        advances_decodes: bool,
        clock: Clock | None,
    ):
        """Makes an idle engine; see `simulator.simulate` for the arguments."""
        self.scheduler = scheduler
        self.due_s = math.inf
        self.num_steps = 0
        self.busy_s = 0.0
        self.request_ids: list[str] = []
        self._step_s = step_s
        self._disturbed = disturbed
        self._tally = tally
        self._recording = recording
        self._lag = lag
        self._advances_decodes = advances_decodes and lag == 0
        self._clock = clock
        self._planned: collections.deque[tuple[StepPlan, float]] = collections.deque()
        self._running: tuple[StepPlan, float] | None = None  # and its duration
        # Output tokens of the requests that end by a stop token.
        self._ends: dict[str, int] = {}

    def submit(self, one: Arrival) -> None:
        """Hands a request to the scheduler."""
        self.request_ids.append(one.request_id)
        max_tokens = max(one.declared_max_tokens, one.max_tokens)
        ends_by_stop = one.declared_max_tokens > 0
        request = Request(
            request_id=one.request_id,
            arrival_s=one.arrival_s,
            prompt_tokens=one.prompt(),
            max_tokens=max_tokens,
            stop_token_ids=frozenset((_STOP_TOKEN,) if ends_by_stop else ()),
            slo=one.slo,
            service_class=one.service_class,
            guard=one.guard,
        )
        try:
            self.scheduler.submit(request)
        except TooLongError:
            self._tally.refuse(one)
        if ends_by_stop:
            self._ends[one.request_id] = one.max_tokens

    def start(self, now_s: float) -> None:
        """Launches the next step, if there is one, and plans as many as may wait."""
        while len(self._planned) <= self._lag:
            start_s = self._clock.now_s() if self._clock else 0.0
            plan = self.scheduler.plan(now_s)
            if plan is None:
                break
            self.scheduler.dispatch(plan, now_s)
            plan_s = self._clock.now_s() - start_s if self._clock else 0.0
            self._planned.append((plan, plan_s))
        if not self._planned:
            self.due_s = math.inf
            return
        plan, plan_s = self._planned.popleft()
        duration_s = float(self._durations_s(plan.features[None])[0])
        self.due_s = now_s
        self._count(plan, plan.features, duration_s, plan_s)
        self._running = plan, duration_s
        self.due_s = now_s + duration_s

    def _durations_s(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` of the next steps."""
        return self._disturbed(self._step_s(matrix), matrix, self.num_steps)

    def _count(
        self, plan: StepPlan, row: np.ndarray, duration_s: float, plan_s: float
    ) -> None:
        """Counts a step of features `[F]` that starts at `due_s`, and records it."""
        if self._recording is not None:
            times_s = (self.due_s + duration_s, duration_s, plan_s)
            self._recording.add(plan, row, times_s, self.num_steps)
        self.num_steps += 1
        self.busy_s += duration_s

    def finish(self, *, start_before_s: float, end_by_s: float) -> None:
        """Ends the step that is due, and runs a stretch of steps that repeat it.

        The stretch's steps start before the first bound and end by the second.
        """
        if self._running is None:
            return  # a stretch has ended
        plan, duration_s = self._running
        self._running = None
        result = StepResult(tokens=self._tokens(plan), duration_s=duration_s)
        for output in self.scheduler.apply(result):
            self._take(output.request, (self.due_s,))
        if self._advances_decodes and not plan.chunks:
            self._advance(plan, start_before_s, end_by_s)

    def _tokens(self, plan: StepPlan) -> tuple[int, ...]:
        """Returns what a step samples."""
        if not self._ends:
            return (_TOKEN,) * plan.num_sampled
        return tuple(
            _STOP_TOKEN
            if len(row.request.output_tokens) + 1
            == self._ends.get(row.request.request_id)
            else _TOKEN
            for row in (*plan.decodes, *plan.chunks)
            if row.draws_token
        )

    def _take(self, request: Request, times_s: Sequence[float]) -> None:
        self._tally.take(request, times_s)
        if request.finish_reason is not None:
            self._ends.pop(request.request_id, None)

    def _advance(self, plan: StepPlan, start_before_s: float, end_by_s: float) -> None:
        """Runs the steps after a decode-only one that can only repeat it."""
        if self.due_s >= start_before_s:
            return
        num_steps = self.scheduler.num_repeats(plan, self._steps_before_stop(plan))
        if num_steps < 1:
            return
        matrix = _steps_after(plan, num_steps, self.scheduler.ledger.page_size)
        durations_s = self._durations_s(matrix)
        # Added one by one, as single steps would.
        ends_s = np.add.accumulate(np.append(self.due_s, durations_s))
        num_steps = min(
            num_steps,
            int(np.searchsorted(ends_s[:-1], start_before_s)),
            int(np.searchsorted(ends_s[1:], end_by_s, side="right")),
        )
        if not num_steps:
            return
        times_s = ends_s[1 : num_steps + 1].tolist()
        for row, duration_s, stop_s in zip(
            matrix[:num_steps], durations_s.tolist(), times_s, strict=False
        ):
            self._count(plan, row, duration_s, 0.0)
            self.scheduler.predictor.update(StepSample(row, duration_s))
            self.due_s = stop_s
        for request in self.scheduler.repeat_decodes(plan, num_steps):
            self._take(request, times_s)

    def _steps_before_stop(self, plan: StepPlan) -> int | None:
        """Returns how many steps yield no stop token; None if none ever comes."""
        lefts = [
            self._ends[row.request.request_id] - len(row.request.output_tokens) - 1
            for row in plan.decodes
            if row.request.request_id in self._ends
        ]
        return min(lefts, default=None)
