"""EngineLoop: clock, scheduler and engine, one step a turn, in a thread of its own.

The one idea: with `enable_overlap` two plans may be in flight. While the device runs
step n, the host plans and launches step n + 1, and only then waits for n. One turn:

    take submits and cancels -> plan -> dispatch -> launch -> wait for the step
    before -> apply -> tell the listener once, with all tokens of that step
"""

import collections
import dataclasses
import gc
import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from jserve.config import EngineConfig
from jserve.engine import Engine, PendingStep
from jserve.events import (
    EngineStats,
    Health,
    NotServingError,
    PredictorStatus,
    QueueFullError,
    StepRecord,
    TokenEvent,
)
from jserve.serving_predictor import ServingPredictor
from jserve.step_log import StepLog
from jserve_sched import features
from jserve_sched.clock import Clock, WallClock
from jserve_sched.plan import StepResult
from jserve_sched.request import FinishReason, Request
from jserve_sched.scheduler import Output, Scheduler

_LOG = logging.getLogger("jserve")
_RATE_WINDOW_S = 30.0  # over which completions are counted for Retry-After
_CANCEL_TIMEOUT_S = 10.0  # for the steps in flight to end
_ORDER = (Health.STARTING, Health.READY, Health.WARM)

Listener = Callable[[Sequence[TokenEvent]], None]


def _tell_nobody(events: Sequence[TokenEvent]) -> None:
    del events


@dataclasses.dataclass(frozen=True)
class _InFlight:
    pending: PendingStep
    plan_s: float
    num_waiting: int


class EngineLoop:
    """Serves requests; every method may be called from any thread.

    Attributes:
      config: what was asked for.
      clock: times in events and deadlines.
      model_name: the model served.
      vocab_size: token ids are below it.
      max_model_len: most tokens of prompt and output together.
      num_kv_tokens: tokens the KV pool holds.
    """

    def __init__(
        self,
        *,
        config: EngineConfig,
        engine: Engine,
        scheduler: Scheduler,
        prepare: Callable[[Engine, Scheduler], ServingPredictor],
    ):
        """Makes a loop that `start` will run.

        Args:
          config: what was asked for.
          engine: not yet warm.
          scheduler: without requests; its predictor is the step-time table.
          prepare: warms the engine up and gives the scheduler its predictor; runs in
            the loop's thread.
        """
        self.config = config
        self.clock: Clock = WallClock()
        self.model_name = engine.model.config.name
        self.vocab_size = engine.model.config.vocab_size
        self.max_model_len = scheduler.max_model_len
        self.num_kv_tokens = engine.num_pages * engine.page_size
        self._engine = engine
        self._scheduler = scheduler
        self._prepare = prepare
        self._table = scheduler.predictor  # prices padding, whatever plans later
        self._predictor: ServingPredictor | None = None  # once prepared
        self._log = StepLog()
        self._num_steps = 0
        self._listener: Listener = _tell_nobody
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._changed = threading.Condition()
        # Guarded by `_changed`:
        self._health = Health.STARTING
        self._submitted: list[Request] = []
        self._cancelled: list[str] = []
        self._in_use: set[str] = set()  # ids not to be used again yet
        self._num_untold = 0  # requests whose listener has not heard their end
        self._is_stopping = False
        self._finish_times_s: collections.deque[float] = collections.deque(maxlen=512)

    @property
    def health(self) -> Health:
        """How far start-up has come, or how far the end."""
        return self._health

    def set_listener(self, publish: Listener) -> None:
        """Sets who is told of tokens: once a step, in the loop's thread."""
        self._listener = publish

    def start(self) -> None:
        """Begins to warm up, then to serve."""
        self._thread.start()

    def wait_until(self, health: Health, timeout_s: float) -> bool:
        """Waits for a state of start-up; False on time-out or failure."""
        wanted = set(_ORDER[_ORDER.index(health) :])
        with self._changed:
            self._changed.wait_for(
                lambda: self._health in wanted or self._health not in _ORDER, timeout_s
            )
            return self._health in wanted

    def submit(self, request: Request) -> None:
        """Hands a request over; its tokens come to the listener.

        Raises:
          ValueError: if it can never run, or its id is in use.
          QueueFullError: if too many wait.
          NotServingError: while starting, draining or failed.
        """
        self._scheduler.check_fits(request.num_prompt_tokens, request.max_tokens)
        with self._changed:
            if self._health not in (Health.READY, Health.WARM):
                raise NotServingError(f"the engine is {self._health.value}")
            # Those just submitted wait only if no slot is free for them.
            num_waiting = self._scheduler.num_waiting + len(self._submitted)
            num_free = self._scheduler.max_num_seqs - self._scheduler.num_running
            if num_waiting - num_free >= self.config.max_queued_requests:
                raise QueueFullError(
                    f"{num_waiting} requests wait, the limit is "
                    f"max_queued_requests={self.config.max_queued_requests}",
                    self._retry_after_s(),
                )
            if request.request_id in self._in_use:
                raise ValueError(f"request id {request.request_id!r} is in use")
            self._submitted.append(request)
            self._in_use.add(request.request_id)
            self._num_untold += 1
            self._changed.notify_all()

    def _retry_after_s(self) -> float:
        """Returns when a place in the queue should be free, by recent completions."""
        now_s = self.clock.now_s()
        recent = [t for t in self._finish_times_s if t > now_s - _RATE_WINDOW_S]
        return _RATE_WINDOW_S / len(recent) if recent else 1.0

    def cancel(self, request_id: str) -> None:
        """Ends a request after the step in flight; ids that are gone are ignored."""
        with self._changed:
            self._cancelled.append(request_id)
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and lets the others finish.

        Returns:
          Whether all finished; those left after `timeout_s` are cancelled.
        """
        with self._changed:
            if self._health in _ORDER:
                self._set_health(Health.DRAINING)
            is_done = self._changed.wait_for(lambda: not self._num_untold, timeout_s)
            if not is_done:
                self._cancelled.extend(self._in_use)
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._num_untold, _CANCEL_TIMEOUT_S)
            return is_done

    def stop(self) -> None:
        """Ends the thread; requests still live are cancelled."""
        self.drain(0.0)
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._listener = _tell_nobody
        gc.unfreeze()  # the engine may be collected now

    def steps(self, since: int = 0) -> list[StepRecord]:
        """Returns the records of steps `since` and later that are remembered."""
        return self._log.since(since)

    def stats(self) -> EngineStats:
        """Returns a snapshot for health and metrics."""
        scheduler, programs = self._scheduler, self._engine.programs
        predictor = self._predictor
        counters = scheduler.counters
        return EngineStats(
            health=self._health,
            policy=self.config.policy,
            block_tokens=scheduler.buckets.block_tokens,
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting + len(self._submitted),
            num_pages=self._engine.num_pages,
            num_free_pages=scheduler.ledger.num_available,
            num_programs=programs.num_compiled,
            num_programs_total=len(programs.table.buckets),
            num_compiles_after_warmup=programs.num_compiles_after_warmup,
            num_preemptions=counters.num_preemptions,
            num_steps=self._num_steps,
            prompt_tokens=counters.prompt_tokens,
            prefix_hit_tokens=counters.prefix_hit_tokens,
            generated_tokens=counters.generated_tokens,
            compile_s=programs.wall_s,
            predictor=predictor.status() if predictor else PredictorStatus(),
        )

    def _set_health(self, health: Health) -> None:
        with self._changed:
            self._health = health
            self._changed.notify_all()

    # All below runs in the loop's thread.

    def _main(self) -> None:
        try:
            self._predictor = self._prepare(self._engine, self._scheduler)
            self._predictor.start()
            gc.collect()
            gc.freeze()  # what lives now lives on: keep the collector off it
            with self._changed:
                if self._health is Health.STARTING:
                    self._set_health(Health.WARM)
            self._serve()
        except Exception as error:
            _LOG.exception("the engine failed")
            self._fail(f"the engine failed: {error}")
        finally:
            if self._predictor is not None:
                self._predictor.stop()

    def _fail(self, message: str) -> None:
        with self._changed:
            ids = sorted(self._in_use)
            self._submitted.clear()
            self._in_use.clear()
            self._num_untold = 0
            self._set_health(Health.FAILED)
        now_s = self.clock.now_s()
        self._listener(
            [
                TokenEvent(one, None, now_s, FinishReason.CANCELLED, error=message)
                for one in ids
            ]
        )

    def _serve(self) -> None:
        in_flight: collections.deque[_InFlight] = collections.deque()
        max_in_flight = 2 if self.config.enable_overlap else 1
        last_end_s = 0.0
        while True:
            self._take_commands(can_wait=not self._scheduler.has_work)
            if self._is_stopping and not in_flight:
                return
            step = self._launch_next()
            if step is not None:
                in_flight.append(step)
            if in_flight and (step is None or len(in_flight) >= max_in_flight):
                last_end_s = self._finish_step(in_flight.popleft(), last_end_s)
            elif step is None and self._scheduler.has_work:
                raise AssertionError("requests are live, but no step can be planned")

    def _take_commands(self, *, can_wait: bool) -> None:
        with self._changed:
            if can_wait:
                self._changed.wait_for(
                    lambda: self._submitted or self._cancelled or self._is_stopping
                )
            submitted, self._submitted = self._submitted, []
            cancelled, self._cancelled = self._cancelled, []
            for request in submitted:
                self._scheduler.submit(request)
        outputs = [self._scheduler.cancel(one) for one in cancelled]
        self._tell([output for output in outputs if output is not None])

    def _launch_next(self) -> _InFlight | None:
        start_s = time.perf_counter()
        now_s = self.clock.now_s()
        num_waiting = self._scheduler.num_waiting
        plan = self._scheduler.plan(now_s)
        if plan is None:
            return None
        self._scheduler.dispatch(plan, now_s)
        plan_s = time.perf_counter() - start_s
        return _InFlight(self._engine.launch(plan), plan_s, num_waiting)

    def _finish_step(self, step: _InFlight, last_end_s: float) -> float:
        """Waits for a step and applies it; returns when it ended on the device."""
        start_s = time.perf_counter()
        tokens = step.pending.wait()
        end_s = self.clock.now_s()
        waited_s = time.perf_counter()
        duration_s = end_s - max(step.pending.launched_s, last_end_s)
        self._tell(
            self._scheduler.apply(StepResult(tokens=tokens, duration_s=duration_s))
        )
        applied_s = time.perf_counter()
        self._record(
            step,
            end_s=end_s,
            duration_s=duration_s,
            wait_s=waited_s - start_s,
            apply_s=applied_s - waited_s,
        )
        return end_s

    def _tell(self, outputs: Sequence[Output]) -> None:
        """Tells the listener of new tokens and ends."""
        if not outputs:
            return
        now_s = self.clock.now_s()
        events = [
            TokenEvent(
                output.request.request_id,
                output.token,
                now_s,
                output.request.finish_reason,
                output.request.num_cached_tokens,
            )
            for output in outputs
        ]
        ended = [one.request_id for one in events if one.finish_reason is not None]
        if ended:
            with self._changed:
                self._in_use.difference_update(ended)
        self._listener(events)
        if ended:
            with self._changed:
                self._num_untold -= len(ended)
                self._finish_times_s.extend([now_s] * len(ended))
                self._changed.notify_all()

    def _record(
        self,
        step: _InFlight,
        *,
        end_s: float,
        duration_s: float,
        wait_s: float,
        apply_s: float,
    ) -> None:
        """Puts a step on record."""
        start_s = time.perf_counter()
        plan = step.pending.plan
        used_rows, used_blocks = len(plan.decodes), plan.num_blocks
        bare = features.without_padding(
            plan.features, used_rows=used_rows, used_blocks=used_blocks
        )
        matrix = np.stack((plan.features, bare))
        bucket_s, used_s = self._table.predict(matrix).tolist()
        transfer_s, launch_s = step.pending.transfer_s, step.pending.launch_s
        record_s = time.perf_counter() - start_s
        self._log.append(
            StepRecord(
                step_id=plan.step_id,
                end_s=end_s,
                num_rows=plan.bucket.num_rows,
                num_blocks=plan.bucket.num_blocks,
                used_rows=used_rows,
                used_blocks=used_blocks,
                prefill_tokens=plan.num_tokens - used_rows,
                decode_pages=int(plan.features[features.DECODE_PAGES]),
                block_pages=int(plan.features[features.BLOCK_PAGES]),
                num_waiting=step.num_waiting,
                ended_by=plan.ended_by.value,
                predicted_s=plan.predicted_s,
                bucket_s=bucket_s,
                used_s=used_s,
                duration_s=duration_s,
                plan_s=step.plan_s,
                transfer_s=transfer_s,
                launch_s=launch_s,
                wait_s=wait_s,
                apply_s=apply_s,
                host_s=step.plan_s + transfer_s + launch_s + apply_s + record_s,
            )
        )
        self._num_steps += 1
