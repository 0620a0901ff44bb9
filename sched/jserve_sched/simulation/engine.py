"""One scheduler and the machine that it drives, in virtual time.

What a step gives is known when it is launched, but is applied only at the time at which
it ends, so that a snapshot in between holds what could be known then.

Overlap is as in the engine: with `lag` 0 a step is planned when the one before has
ended; with `lag` 1 the next step is planned when one starts, so a request that comes
during a step waits for the one after the next.
"""

import collections
import math
from collections.abc import Callable

from jserve_sched.outcomes import Failure
from jserve_sched.requests.limits import TooLongError
from jserve_sched.requests.request import Request
from jserve_sched.scheduler import Scheduler
from jserve_sched.simulation.disturbance import Disturb
from jserve_sched.simulation.log import Recording, Tally
from jserve_sched.simulation.workload import Arrival
from jserve_sched.steps.plan import StepPlan, StepResult
from jserve_sched.timing.predictor import Predict

_TOKEN, _STOP_TOKEN = 0, 1  # what answers are made of, and what ends some of them


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
        disturbed: Disturb,
        tally: Tally,
        lag: int,
        recording: Recording | None,
        clock: Callable[[], float],
    ):
        """Makes an idle engine; see `simulator.simulate` for the arguments."""
        self.scheduler = scheduler
        self.due_s = math.inf
        self.num_steps = 0
        self.busy_s = 0.0
        self.request_ids: list[str] = []
        self._step_s = step_s
        self._disturbed = disturbed
        self._num_received = 0  # since the last step began
        self._tally = tally
        self._recording = recording
        self._lag = lag
        self._clock = clock
        self._planned: collections.deque[tuple[StepPlan, float]] = collections.deque()
        self._running: tuple[StepPlan, float] | None = None  # and its duration
        # Output tokens of the requests that end by a stop token.
        self._ends: dict[str, int] = {}

    def submit(self, one: Arrival, now_s: float) -> None:
        """Hands a request to the scheduler, and has it forecast as the server does."""
        self.request_ids.append(one.request_id)
        self._num_received += 1
        request = self._request(one)
        try:
            self.scheduler.limits.check(request.num_prompt_tokens, request.max_tokens)
            self._tally.expect(self.scheduler.forecast(request, now_s), request)
            self.scheduler.submit(request)
        except TooLongError:
            self._tally.fail(request, Failure.TOO_LONG, one.arrival_s)
        if request.stop_token_ids:
            self._ends[one.request_id] = one.max_tokens

    def refuse(self, one: Arrival, now_s: float) -> None:
        """Ends a request that a router sends nowhere."""
        self._tally.fail(self._request(one), Failure.REJECTED, now_s)

    def _request(self, one: Arrival) -> Request:
        return Request(
            request_id=one.request_id,
            arrival_s=one.arrival_s,
            prompt_tokens=one.prompt(),
            max_tokens=max(one.declared_max_tokens, one.max_tokens),
            stop_token_ids=frozenset([_STOP_TOKEN] * (one.declared_max_tokens > 0)),
            slo=one.slo,
            service_class=one.service_class,
            guard=one.guard,
            weight=one.weight,
            admission=one.admission,
            max_queue_wait_s=one.max_queue_wait_s,
        )

    def start(self, now_s: float) -> None:
        """Launches the next step, if there is one, and plans as many as may wait."""
        for output in self.scheduler.review(now_s):
            self._tally.fail(output.request, Failure.REJECTED, now_s)
            self._ends.pop(output.request.request_id, None)
        while len(self._planned) <= self._lag:
            start_s = self._clock()
            plan = self.scheduler.plan(now_s)
            if plan is None:
                break
            self.scheduler.dispatch(plan, now_s)
            plan_s = self._clock() - start_s
            self._planned.append((plan, plan_s))
        if not self._planned:
            self.due_s = math.inf
            return
        plan, plan_s = self._planned.popleft()
        matrix = plan.features[None]
        wanted_s = float(self._step_s(matrix)[0])
        duration_s = self._disturbed(wanted_s, plan.features, now_s, self._num_received)
        self._num_received = 0
        self.due_s = now_s + duration_s
        if self._recording is not None:
            self._recording.add(plan, (self.due_s, duration_s, plan_s), self.num_steps)
        self.num_steps += 1
        self.busy_s += duration_s
        self._running = plan, duration_s

    def finish(self) -> None:
        """Ends the step that is due."""
        assert self._running is not None
        plan, duration_s = self._running
        self._running = None
        result = StepResult(
            tokens=self._tokens(plan), duration_s=duration_s, end_s=self.due_s
        )
        for output in self.scheduler.apply(result):
            request = output.request
            self._tally.take(request, self.due_s)
            if request.finish_reason is not None:
                self._ends.pop(request.request_id, None)

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
