"""EngineLoop: scheduler and engine, one step a turn, in one thread.

With `enable_overlap` two plans may be in flight. While the device runs step n, the host
plans and launches step n + 1, and only then waits for n. One turn:

    take submits and cancels -> plan -> dispatch -> launch -> wait for the step
    before -> apply -> notify the listener once, with all tokens of that step

Until the engine is warm, a turn of the warm-up may come between two such turns.
"""

import collections
import gc
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jserve.config import EngineConfig
from jserve.engine.engine import Engine, PendingStep
from jserve.engine.followers import reason_of
from jserve.engine.interface import Listener
from jserve.engine.profiler import Profiler
from jserve.engine.recent_steps import RecentSteps
from jserve.engine.stats import engine_stats
from jserve.engine.token_events import token_events
from jserve.engine.warm_up import WarmUp, start_up_table
from jserve.engine.watchdog import Watchdog
from jserve.records.events import (
    EngineStats,
    Health,
    NotServingError,
    PredictorStatus,
    QueueFullError,
    TokenEvent,
    TokenLogprobs,
)
from jserve.text.constraints import accept_outputs
from jserve.timing.serving_predictor import ServingPredictor
from jserve_sched.requests.forecast import Forecast
from jserve_sched.requests.request import FinishReason, Request
from jserve_sched.scheduler import Output, Scheduler
from jserve_sched.steps.plan import StepResult
from jserve_sched.steps.record import StepRecord

_LOG = logging.getLogger("jserve")
_CANCEL_TIMEOUT_S = 5.0  # for the steps in flight to end
_PLAN_TIMEOUT_S = 1.0  # for a plan to be made, while a new request waits
_ORDER = (Health.STARTING, Health.READY, Health.WARM)


class _InFlight(NamedTuple):
    pending: PendingStep
    plan_s: float
    num_waiting: int


class EngineLoop:
    """A `ServingEngine`: one scheduler and one engine, in one thread.

    `ServingEngine` says what its methods do and raise.

    Attributes:
      warm_up: Makes the engine's programs; runs alone if the loop is not started.
    """

    def __init__(
        self,
        *,
        config: EngineConfig,
        engine: Engine,
        scheduler: Scheduler,
        warm_up: WarmUp,
        records: RecentSteps,
    ):
        """Makes a loop that `start` will run, of an engine that is not yet warm."""
        self.config = config
        self.model_name = engine.model.config.name
        self.vocab_size = engine.model.config.vocab_size
        self.limits = scheduler.limits
        self._engine = engine
        self._scheduler = scheduler
        self.warm_up = warm_up
        self._records = records
        self._profiler = Profiler(config.profiled_steps, config.profile_dir)
        self._watchdog = Watchdog(config.step_timeout_s, self.fail)
        self._predictor: ServingPredictor | None = None  # once warm
        self._listener: Listener = len  # ignores them
        self._scheduling = threading.RLock()  # held while the scheduler changes
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._changed = threading.Condition()
        # Guarded by `_changed`:
        self.health = Health.STARTING
        self._submitted: list[Request] = []
        self._cancelled: list[str] = []
        self._in_use: set[str] = set()  # ids not to be used again yet
        self._num_open = 0  # requests whose end is not published yet
        self._is_stopping = False
        self._is_cut = False  # what is still open ends with an error

    def set_listener(self, publish: Listener) -> None:
        """Sets the function that is called once a step, in the loop's thread."""
        self._listener = publish

    def start(self) -> None:
        """Begins to warm up, and to serve as soon as that is possible."""
        self._thread.start()

    def wait_until(self, health: Health, timeout_s: float) -> bool:
        """Waits for a state of start-up; False on time-out or failure."""
        wanted = set(_ORDER[_ORDER.index(health) :])
        with self._changed:
            self._changed.wait_for(
                lambda: self.health in wanted or self.health not in _ORDER, timeout_s
            )
            return self.health in wanted

    def submit(self, request: Request) -> None:
        """Hands a request over; its tokens come to the listener."""
        self.limits.check(request.num_prompt_tokens, request.max_tokens)
        self.check_open()
        self.forecast(request)
        with self._changed:
            self.check_open()
            if request.request_id in self._in_use:
                raise ValueError(f"request id {request.request_id!r} is in use")
            self._submitted.append(request)
            self._in_use.add(request.request_id)
            self._num_open += 1
            self._changed.notify_all()

    def forecast(self, request: Request) -> Forecast:
        """Returns when the tokens of a request that came now would come."""
        if self.health not in (Health.READY, Health.WARM):
            raise NotServingError(f"the engine is {self.health.value}")
        if not self._scheduling.acquire(timeout=_PLAN_TIMEOUT_S):
            raise NotServingError(f"a plan takes longer than {_PLAN_TIMEOUT_S:g} s")
        try:
            others = tuple(self._submitted)
            return self._scheduler.forecast(request, time.monotonic(), others)
        finally:
            self._scheduling.release()

    def check_open(self) -> None:
        """Checks that one more request would be taken now, of any size."""
        with self._changed:
            if self.health not in (Health.READY, Health.WARM):
                raise NotServingError(f"the engine is {self.health.value}")
            # Those just submitted wait only if no slot is free for them.
            num_waiting = self._scheduler.num_waiting + len(self._submitted)
            num_waiting -= self._scheduler.max_num_seqs - self._scheduler.num_running
            if num_waiting >= self.config.max_queued_requests:
                raise QueueFullError(
                    f"{num_waiting} requests wait, the limit is "
                    f"max_queued_requests={self.config.max_queued_requests}",
                    self._scheduler.admission.returns.next_s(time.monotonic()),
                )

    def cancel(self, request_id: str) -> None:
        """Ends a request after the step in flight; ids that are gone are ignored."""
        with self._changed:
            self._cancelled.append(request_id)
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and lets the others finish; no more is compiled."""
        with self._changed:
            if self.health in _ORDER:
                self.health = Health.DRAINING
                self._changed.notify_all()
            self.warm_up.begin_no_more()
            if self._changed.wait_for(lambda: not self._num_open, timeout_s):
                return True
            self._is_cut = True
            self._cancelled.extend(self._in_use)
            self._changed.notify_all()
            ends = self._changed.wait_for(lambda: not self._num_open, _CANCEL_TIMEOUT_S)
        if not ends and self.health is not Health.FAILED:
            self.fail(f"the engine ended no step in {_CANCEL_TIMEOUT_S:g} s")
        return False

    def check_progress(self) -> None:
        """Fails the engine if a step has taken far too long; any thread may call it."""
        self._watchdog.check()

    def stop(self) -> None:
        """Ends the thread; requests still live are cancelled."""
        self.drain(0.0)
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._listener = len
        gc.unfreeze()  # the engine may be collected now

    def steps(self, since: int = 0) -> list[StepRecord]:
        """Returns the records of steps `since` and later that are remembered."""
        return self._records.since(since)

    def stats(self) -> EngineStats:
        """Returns a snapshot for health and metrics."""
        predictor = self._predictor
        return engine_stats(
            self._engine,
            self._scheduler,
            self.warm_up,
            health=self.health,
            policy=self.config.policy,
            num_submitted=len(self._submitted),
            records=self._records,
            predictor=predictor.status() if predictor else PredictorStatus(),
        )

    # All below runs in the loop's thread.

    def _main(self) -> None:
        try:
            self.warm_up.cover()
            self._advance(Health.READY)
            if self.health in _ORDER:
                self.warm_up.start(self._notify)
            self._serve()
            self._engine.release_followers()
        except BaseException as error:  # of any kind, since clients must get an error
            _LOG.exception("the engine failed: requests are refused from now on")
            self.fail(f"the engine failed: {reason_of(error)}")
        finally:
            self._records.close()  # first, since what comes next may take long
            self._profiler.stop()
            self.warm_up.stop()
            if self._predictor is not None:
                self._predictor.stop()

    def _advance(self, health: Health) -> None:
        """Takes the next state of start-up, unless the end has begun."""
        if health is Health.WARM:
            gc.collect()
        gc.freeze()  # keeps the collector away from what stays alive
        gc.enable()  # a program may have switched it off for its start
        with self._changed:
            if self.health in _ORDER:
                self.health = health
                self._changed.notify_all()
        reached = self.warm_up.start_up()
        passed_s = reached.warm_s or reached.ready_s or 0.0
        num_programs = len(reached.programs)
        _LOG.info("%s after %.1f s, %d programs", health.value, passed_s, num_programs)
        self._records.begin_stretch()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _is_warm_up_due(self) -> bool:
        return self.health in _ORDER and self.warm_up.is_due(
            is_idle=not self._scheduler.has_work
        )

    def _take_warm_up_turn(self) -> None:
        self._watchdog.rest()  # since a compiler may take minutes
        table = self._scheduler.buckets
        self.warm_up.turn(is_idle=not self._scheduler.has_work)
        serving = self.warm_up.serving
        if serving is not None and self._predictor is None:
            self._predictor = serving
            self._advance(Health.WARM)
            _LOG.info("start-up:\n%s", start_up_table(self.warm_up.start_up()))
        elif self._scheduler.buckets is not table:
            self._records.begin_stretch()

    def fail(self, message: str) -> None:
        """Ends all requests with an error; any thread may call it."""
        with self._changed:
            ids = sorted(self._in_use)
            self._submitted.clear()
            self._in_use.clear()
            self._num_open = 0
            self.health = Health.FAILED
            self._changed.notify_all()
        now_s, reason = time.monotonic(), FinishReason.CANCELLED
        ends = [TokenEvent(one, None, now_s, reason, error=message) for one in ids]
        self._deliver(ends)

    def _deliver(self, events: Sequence[TokenEvent]) -> None:
        """Notifies the listener; only its second failure in a row is one."""
        try:
            self._listener(events)
        except Exception:
            _LOG.exception("the tokens of a step are delivered once more")
            self._listener(events)

    def _serve(self) -> None:
        in_flight: collections.deque[_InFlight] = collections.deque()
        max_in_flight = 2 if self.config.enable_overlap else 1
        last_end_s = 0.0
        while True:
            self._take_commands(can_wait=not self._scheduler.has_work)
            if self._is_stopping and not in_flight:
                return
            if self._is_warm_up_due():
                while in_flight:  # a padded run must not lengthen a step
                    last_end_s = self._finish_step(in_flight, last_end_s)
                self._take_warm_up_turn()
            step = self._launch_next(can_draw=not in_flight)
            if step is not None:
                in_flight.append(step)
            if in_flight and (step is None or len(in_flight) >= max_in_flight):
                last_end_s = self._finish_step(in_flight, last_end_s)
            elif step is None and self._scheduler.has_work:
                name = type(self._scheduler.policy).__name__
                raise AssertionError(f"requests are live, but {name} plans nothing")

    def _take_commands(self, *, can_wait: bool) -> None:
        with self._changed:
            if can_wait:
                self._watchdog.rest()
                self._changed.wait_for(
                    lambda: (
                        self._submitted
                        or self._cancelled
                        or self._is_stopping
                        or self._is_warm_up_due()
                    )
                )
            submitted, self._submitted = self._submitted, []
            cancelled, self._cancelled = self._cancelled, []
        self._watchdog.begin()
        with self._scheduling:
            for request in submitted:
                self._scheduler.submit(request)
            outputs = [self._scheduler.cancel(one) for one in cancelled]
        self._publish([output for output in outputs if output is not None])

    def _launch_next(self, *, can_draw: bool) -> _InFlight | None:
        start_s = time.perf_counter()
        now_s = time.monotonic()
        num_waiting = self._scheduler.num_waiting
        with self._scheduling:
            refused = self._scheduler.review(now_s)
            plan = self._scheduler.plan(now_s)
            if plan is not None:
                self._scheduler.dispatch(plan, now_s)
        self._publish(refused)
        if plan is None:
            return None
        plan_s = time.perf_counter() - start_s
        with self._profiler.step(plan.step_id):
            pending = self._engine.launch(plan, can_draw=can_draw)
            return _InFlight(pending, plan_s, num_waiting)

    def _finish_step(
        self, in_flight: collections.deque[_InFlight], last_end_s: float
    ) -> float:
        """Waits for the first step and applies it; returns when it ended there."""
        step = in_flight.popleft()
        start_s = time.perf_counter()
        self._watchdog.begin(step.pending.plan.predicted_s)
        tokens = step.pending.wait()
        end_s = time.monotonic()
        waited_s = time.perf_counter()
        duration_s = end_s - max(step.pending.launched_s, last_end_s)
        result = StepResult(tokens=tokens, duration_s=duration_s, end_s=end_s)
        with self._scheduling:
            outputs = self._scheduler.apply(result)
        for request_id in accept_outputs(outputs):
            self.cancel(request_id)
        for later in in_flight:
            self._engine.draw_pending(later.pending)
        self._publish(outputs, step.pending.logprobs())
        applied_s = time.perf_counter()
        self._records.add(
            step.pending,
            plan_s=step.plan_s,
            num_waiting=step.num_waiting,
            end_s=end_s,
            duration_s=duration_s,
            wait_s=waited_s - start_s,
            apply_s=applied_s - waited_s,
        )
        self._profiler.end_step(step.pending.plan.step_id)
        return end_s

    def _publish(
        self,
        outputs: Sequence[Output],
        logprobs: Mapping[str, TokenLogprobs] | None = None,
    ) -> None:
        """Delivers new tokens and ends."""
        if not outputs:
            return
        events = token_events(outputs, logprobs or {}, is_cut=self._is_cut)
        ended = [one.request_id for one in events if one.finish_reason is not None]
        with self._changed:
            self._in_use.difference_update(ended)
        self._deliver(events)
        with self._changed:  # `fail` may have ended all of them
            self._num_open = max(self._num_open - len(ended), 0)
            self._changed.notify_all()
