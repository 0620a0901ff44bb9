"""A scripted engine, in place of one with a model and a scheduler.

Each step emits one token of every running request whose prompt is computed: the next of
its script, which repeats. A script that raises an error fails the engine.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from jserve.config import EngineConfig
from jserve.engine.interface import Listener
from jserve.records.events import (
    EngineStats,
    Health,
    NotServingError,
    ProgramStart,
    QueueFullError,
    StartUp,
    TokenEvent,
    TokenLogprobs,
)
from jserve_sched.buckets.table import BucketTable
from jserve_sched.requests.forecast import Forecast
from jserve_sched.requests.limits import RequestLimits
from jserve_sched.requests.request import FinishReason, Request
from jserve_sched.steps.record import StepRecord

Script = Callable[[Request], Sequence[int]]
MANY = 10**9
STARTED = StartUp(
    ready_s=0.5,
    warm_s=2.0,
    covering_s=0.25,
    programs=tuple(
        ProgramStart(f"B8xNB{num_blocks}", 0.125, 0.375, 1000, "compiled")
        for num_blocks in (0, 4)
    ),
)


class FakeLoop:
    """A `ServingEngine` of scripted requests."""

    def __init__(
        self,
        script: Script | str = "hello ",
        *,
        step_s: float = 0.001,
        prompt_token_s: float = 0.0,
        chunk_tokens: int = MANY,
        num_slots: int = MANY,
        config: EngineConfig | None = None,
        health: Health = Health.WARM,
        logprobs: Callable[[int], TokenLogprobs] | None = None,
    ):
        self.script: Script = (
            (lambda request: list(script.encode()))
            if isinstance(script, str)
            else script
        )
        self.logprobs = logprobs
        self.step_s = step_s
        self.prompt_token_s = prompt_token_s
        self.chunk_tokens = chunk_tokens  # of prompts, in one step
        self.num_slots = num_slots
        self.config = (config or EngineConfig()).for_device("cpu")
        self.vocab_size = 320
        self.limits = RequestLimits(max_model_len=512, num_kv_tokens=4096)
        self.model_name = "fake"
        self.seen: list[Request] = []
        self.forecasts = Forecast(
            ttft_s=(5.0, 10.0),
            worst_gap_s=(0.25, 0.5),
            ttlt_s=(6.0, 12.5),
            chances={"ttft_s": 0.75, "tbt_s": 0.5},
            attainable_in_s=1.5,
            made_s=0.0,
            points=(5.0, 0.25, 6.0),
        )
        self.cancelled: list[str] = []
        self.running = threading.Event()  # cleared: no step is made
        self.running.set()
        self.fail_with: str | None = None
        self.refusals: Iterator[Exception | None] = iter(())
        self.start_up = StartUp()
        self.num_forgotten = 0  # of the oldest steps
        self.health = health
        self._lock = threading.Condition()
        self._live: dict[str, Request] = {}
        self._prompt_left: dict[str, int] = {}
        self._steps: list[StepRecord] = []
        self._publish: Listener = len
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def set_listener(self, publish: Listener) -> None:
        self._publish = publish

    def start(self) -> None:
        self._thread.start()

    def check_open(self) -> None:
        if self.health not in (Health.READY, Health.WARM):
            raise NotServingError(f"the engine is {self.health.value}")
        if len(self._live) >= self.config.max_queued_requests:
            raise QueueFullError("too many requests wait", 2.5)

    def forecast(self, request: Request) -> Forecast:
        if self.health not in (Health.READY, Health.WARM):
            raise NotServingError(f"the engine is {self.health.value}")
        return self.forecasts

    def submit(self, request: Request) -> None:
        request.forecast = self.forecasts
        self.limits.check(request.num_prompt_tokens, request.max_tokens)
        with self._lock:
            self.check_open()
            if (refusal := next(self.refusals, None)) is not None:
                raise refusal
            self.seen.append(request)
            self._prompt_left[request.request_id] = request.num_prompt_tokens
            self._live[request.request_id] = request
            self._lock.notify_all()

    def cancel(self, request_id: str) -> None:
        with self._lock:
            if self._live.pop(request_id, None) is not None:
                self.cancelled.append(request_id)
            self._lock.notify_all()

    def refuse(self, reason: FinishReason, most: int = MANY) -> None:
        """Ends what waits, as a scheduler's admission does."""
        now_s, ended = time.monotonic(), list(self._live)[:most]
        for one in ended:
            del self._live[one]
        self._publish(
            [TokenEvent(one, None, now_s, reason, retry_after_s=1.5) for one in ended]
        )

    def num_live(self) -> int:
        with self._lock:
            return len(self._live)

    def wait_idle(self, timeout_s: float = 5.0) -> bool:
        with self._lock:
            return self._lock.wait_for(lambda: not self._live, timeout_s)

    def wait_live(self, count: int, timeout_s: float = 5.0) -> bool:
        with self._lock:
            return self._lock.wait_for(lambda: len(self._live) >= count, timeout_s)

    def stats(self) -> EngineStats:
        return EngineStats(
            health=self.health,
            policy=self.config.policy,
            block_tokens=32,
            buckets=BucketTable((8,), (0, 4)),
            num_running=self.num_live(),
            num_waiting=0,
            num_pages=32,
            num_free_pages=24,
            num_programs=4,
            num_programs_total=4,
            num_compiles_after_warmup=0,
            num_preemptions=1,
            num_steps=len(self._steps),
            prompt_tokens=sum(one.num_prompt_tokens for one in self.seen),
            prefix_hit_tokens=3,
            generated_tokens=sum(len(one.output_tokens) for one in self.seen),
            compile_s=0.5,
            start_up=self.start_up,
        )

    def steps(self, since: int = 0) -> list[StepRecord]:
        return self._steps[max(since, self.num_forgotten) :]

    def check_progress(self) -> None:
        pass

    def drain(self, timeout_s: float) -> bool:
        self.health = Health.DRAINING
        is_done = self.wait_idle(timeout_s)
        with self._lock:
            left = list(self._live)
            self._live.clear()
        self._publish(
            [
                TokenEvent(
                    one, None, time.monotonic(), FinishReason.CANCELLED, is_cut=True
                )
                for one in left
            ]
        )
        return is_done

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        self.running.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            with self._lock:
                left = list(self._live)
                self._live.clear()
                self.health = Health.FAILED
            now_s, reason = time.monotonic(), FinishReason.CANCELLED
            self._publish(
                [TokenEvent(one, None, now_s, reason, error=str(error)) for one in left]
            )

    def _serve(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._live or self._stopping)
                if self._stopping:
                    return
            self.running.wait()
            with self._lock:
                running = list(self._live.values())[: self.num_slots]
                prefill_tokens = self._prefill(running)
            time.sleep(self.step_s + self.prompt_token_s * prefill_tokens)
            with self._lock:
                events = [
                    self._next(one)
                    for one in running
                    if one.request_id in self._live
                    and not self._prompt_left[one.request_id]
                ]
                for event in events:
                    if event.finish_reason is not None:
                        del self._live[event.request_id]
                self._lock.notify_all()
            self._record(len(events))
            self._publish(events)

    def _prefill(self, running: Sequence[Request]) -> int:
        """Computes the next chunk of prompts; returns its tokens."""
        room = self.chunk_tokens
        for one in running:
            one.first_scheduled_s = one.first_scheduled_s or time.monotonic()
            taken = min(room, self._prompt_left[one.request_id])
            self._prompt_left[one.request_id] -= taken
            room -= taken
        return self.chunk_tokens - room

    def _next(self, request: Request) -> TokenEvent:
        now_s = time.monotonic()
        if self.fail_with is not None:
            return TokenEvent(
                request.request_id,
                None,
                now_s,
                FinishReason.CANCELLED,
                error=self.fail_with,
            )
        script = self.script(request)
        index = len(request.output_tokens)
        token = script[index % len(script)]
        request.output_tokens.append(token)
        reason = None
        if token in request.stop_token_ids and index + 1 > request.min_tokens:
            reason = FinishReason.STOP
        elif index + 1 == request.max_tokens:
            reason = FinishReason.LENGTH
        event = TokenEvent(request.request_id, token, now_s, reason, 2)
        if self.logprobs and request.sampling.num_logprobs is not None:
            event = event._replace(logprobs=self.logprobs(token))
        return event

    def _record(self, used_rows: int) -> None:
        self._steps.append(
            StepRecord(
                step_id=len(self._steps),
                end_s=time.monotonic(),
                num_rows=8,
                num_blocks=1,
                used_rows=used_rows,
                used_blocks=1,
                prefill_tokens=10,
                decode_pages=1,
                block_pages=1,
                ended_by="no_work",
                leaves_work=False,
                predicted_s=0.002,
                bucket_s=0.002,
                used_s=0.001,
                duration_s=0.001,
                plan_s=0.0001,
                launch_s=0.0001,
                wait_s=0.001,
                host_s=0.0005,
            )
        )
