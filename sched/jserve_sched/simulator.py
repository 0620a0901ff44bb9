"""Runs the scheduler in virtual time against a cost model.

The one idea: it is the *same* `Scheduler` object that serves, so what a simulation
says of a policy is about the code that runs; only the step's duration is made up.

Overlap is as in the engine: with `lag` 0 a step is planned when the one before has
ended; with `lag` 1 the next step is planned when one starts, so a request that comes
during a step waits for the one after the next.

A stretch of decode steps between two events (an arrival, a last token, a page too
few) can only run the same rows again. With `lag` 0 such a stretch is advanced at
once; its steps are priced by one call, each as it would be alone.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jserve_sched import features
from jserve_sched.buckets import BucketTable
from jserve_sched.clock import Clock
from jserve_sched.cost_model import CostModel
from jserve_sched.ledger import KvLedger
from jserve_sched.plan import StepPlan, StepResult
from jserve_sched.policies.base import Policy
from jserve_sched.predictor import Predictor, StepSample
from jserve_sched.report import EngineCounters, Failure, Outcome
from jserve_sched.request import Request
from jserve_sched.scheduler import Scheduler
from jserve_sched.simulation_log import SimulatedStep, StepLog, Tally
from jserve_sched.workload import Arrival

_NOISE_BLOCK = 4096  # factors of step times drawn at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """What a simulation came to.

    Attributes:
      outcomes: every request's experience, by arrival.
      steps: every step, if they were recorded.
      counters: the scheduler's, in the form of an engine's.
      num_steps: steps run.
      end_s: virtual time when it ended, seconds.
      wall_s: what it took in real time, seconds; None without a clock.
      is_stopped: whether it was stopped for too many violations; requests that
        were live or yet to come are then unfinished.
    """

    outcomes: list[Outcome]
    steps: list[SimulatedStep] | None
    counters: EngineCounters
    num_steps: int
    end_s: float
    wall_s: float | None
    is_stopped: bool


def make_scheduler(
    *,
    policy: Policy,
    cost_model: CostModel,
    buckets: BucketTable,
    predictor: Predictor,
    max_model_len: int,
) -> Scheduler:
    """Returns a scheduler within a cost model's limits, without a prefix cache."""
    page_size = cost_model.page_size
    return Scheduler(
        policy=policy,
        buckets=buckets,
        ledger=KvLedger(
            num_pages=cost_model.num_kv_tokens // page_size,
            page_size=page_size,
            enable_prefix_caching=False,
        ),
        predictor=predictor,
        max_num_seqs=cost_model.max_num_seqs,
        max_num_batched_tokens=cost_model.max_num_batched_tokens,
        max_model_len=max_model_len,
    )


class _StepTimes:
    """Step durations: the cost model's, times a seeded factor for each step."""

    def __init__(
        self, cost_model: CostModel, block_tokens: int, noise: float, seed: int
    ):
        self._cost_model = cost_model
        self._block_tokens = block_tokens
        self._noise = noise
        self._random = np.random.default_rng(seed)
        self._factors = np.ones(0)

    def of(self, first_step: int, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` of steps `first_step`, `first_step + 1` ..., s."""
        duration_s = self._cost_model.step_s(matrix, self._block_tokens)
        if not self._noise:
            return duration_s
        stop = first_step + len(matrix)
        while len(self._factors) < stop:
            more = np.exp(self._noise * self._random.standard_normal(_NOISE_BLOCK))
            self._factors = np.concatenate((self._factors, more))
        return duration_s * self._factors[first_step:stop]


def _steps_after(plan: StepPlan, num_steps: int, page_size: int) -> np.ndarray:
    """Returns features `[num_steps, F]` of the steps that repeat a decode-only plan."""
    matrix = np.repeat(plan.features[None], num_steps, axis=0)
    steps = np.arange(1, num_steps + 1)
    grown = steps * len(plan.decodes)
    matrix[:, features.DECODE_CONTEXT] += grown
    matrix[:, features.CACHED_TOKENS] += grown
    longest = max(row.stop for row in plan.decodes) + steps
    matrix[:, features.DECODE_PAGES] = -(-longest // page_size)
    return matrix


class _Simulation:
    """One run; see `simulate` for what it is given."""

    def __init__(
        self,
        scheduler: Scheduler,
        arrivals: Sequence[Arrival],
        *,
        times: _StepTimes,
        tally: Tally,
        lag: int,
        records_steps: bool,
        advances_decodes: bool,
        clock: Clock | None,
    ):
        self._scheduler = scheduler
        self._arrivals = arrivals
        self._times = times
        self._lag = lag
        self._clock = clock
        self._advances_decodes = advances_decodes and lag == 0
        self.tally = tally
        longest = max(one.num_prompt_tokens for one in arrivals)
        self._prompt = np.zeros(longest, np.int32)  # all prompts are slices of it
        self._next = 0
        self._queue: collections.deque[tuple[StepPlan, float]] = collections.deque()
        self.now_s = arrivals[0].arrival_s
        self.num_steps = 0
        self.log = StepLog() if records_steps else None

    @property
    def _next_arrival_s(self) -> float:
        if self._next == len(self._arrivals):
            return math.inf
        return self._arrivals[self._next].arrival_s

    def _submit(self) -> None:
        """Hands over who has come by now."""
        while self._next_arrival_s <= self.now_s:
            one = self._arrivals[self._next]
            self._next += 1
            request = Request(
                request_id=one.request_id,
                arrival_s=one.arrival_s,
                prompt_tokens=self._prompt[: one.num_prompt_tokens],
                max_tokens=one.max_tokens,
                slo=one.slo,
                service_class=one.service_class,
                guard=one.guard,
            )
            try:
                self._scheduler.submit(request)
            except ValueError:
                self.tally.fail(one, Failure.TOO_LONG)

    def _plan(self) -> None:
        """Dispatches as many plans as may be in flight."""
        while len(self._queue) <= self._lag:
            start_s = self._clock.now_s() if self._clock else 0.0
            plan = self._scheduler.plan(self.now_s)
            if plan is None:
                return
            self._scheduler.dispatch(plan, self.now_s)
            plan_s = self._clock.now_s() - start_s if self._clock else 0.0
            self._queue.append((plan, plan_s))

    def turn(self, end_s: float) -> bool:
        """Runs one step, or more; tells whether there was anything to do by `end_s`."""
        self._submit()
        self._plan()
        if self._queue:
            plan, plan_s = self._queue.popleft()
            self._run(plan, plan_s)
            if self._advances_decodes and not plan.chunks:
                self._advance(plan, end_s)
        elif self._next < len(self._arrivals):
            self.now_s = self._next_arrival_s
        elif self._scheduler.has_work:
            raise RuntimeError(
                f"at {self.now_s:.3f} s {self._scheduler.num_waiting} requests wait "
                f"and {self._scheduler.num_running} run, but policy "
                f"{self._scheduler.policy} plans nothing"
            )
        else:
            return False
        return self.now_s < end_s

    def _run(self, plan: StepPlan, plan_s: float) -> None:
        duration_s = float(self._times.of(self.num_steps, plan.features[None])[0])
        if self.log is not None:
            self.log.add(
                plan.features,
                used_blocks=plan.num_blocks,
                leaves_work=plan.leaves_work,
                start_s=self.now_s,
                duration_s=duration_s,
                plan_s=plan_s,
            )
        self.num_steps += 1
        self.now_s += duration_s
        result = StepResult(tokens=(0,) * plan.num_sampled, duration_s=duration_s)
        for output in self._scheduler.apply(result):
            self._take(output.request, (self.now_s,))

    def _take(self, request: Request, times_s: Sequence[float]) -> None:
        self.tally.times_of(request).extend(times_s)
        if request.finish_reason is not None:
            self.tally.finish(request)

    def _advance(self, plan: StepPlan, end_s: float) -> None:
        """Runs the steps after a decode-only one that can but repeat it."""
        num_steps = self._scheduler.num_steps_alike(plan)
        next_s = min(self._next_arrival_s, end_s)
        if num_steps < 1 or self.now_s >= next_s:
            return
        matrix = _steps_after(plan, num_steps, self._scheduler.ledger.page_size)
        durations_s = self._times.of(self.num_steps, matrix)
        # Added one by one, as single steps would.
        ends_s = np.add.accumulate(np.append(self.now_s, durations_s))
        num_steps = min(num_steps, int(np.searchsorted(ends_s[:-1], next_s)))
        matrix = matrix[:num_steps]
        times_s = ends_s[1 : num_steps + 1].tolist()
        for row, duration_s, stop_s in zip(
            matrix, durations_s.tolist(), times_s, strict=False
        ):
            if self.log is not None:
                self.log.add(
                    row,
                    used_blocks=0,
                    leaves_work=plan.leaves_work,
                    start_s=self.now_s,
                    duration_s=duration_s,
                    plan_s=0.0,
                )
            self._scheduler.predictor.update(StepSample(row, duration_s))
            self.now_s = stop_s
        self.num_steps += num_steps
        for request in self._scheduler.repeat_decodes(plan, num_steps):
            self._take(request, times_s)


def simulate(
    scheduler: Scheduler,
    cost_model: CostModel,
    arrivals: Sequence[Arrival],
    *,
    lag: int = 0,
    records_steps: bool = False,
    advances_decodes: bool = True,
    noise: float = 0.0,
    seed: int = 0,
    max_spans: float = 5.0,
    stop_after_violations: int | None = None,
    num_uncounted: int = 0,
    clock: Clock | None = None,
) -> SimulationResult:
    """Serves requests in virtual time.

    Args:
      scheduler: a fresh one; see `make_scheduler`.
      cost_model: how long steps take.
      arrivals: the requests, by arrival.
      lag: plans in flight beside the one that runs, 0 or 1.
      records_steps: whether to keep every step.
      advances_decodes: whether to advance decode-only stretches at once.
      noise: deviation of the logarithm of a step's duration about the cost model's.
      seed: of the noise.
      max_spans: when to end, as a multiple of the time between the first and the
        last arrival (of at least a minute); who is not done then is unfinished.
      stop_after_violations: end as soon as more requests than this have certainly
        broken a promise.
      num_uncounted: first requests that do not count for that.
      clock: real time, for `wall_s` and `plan_s`.

    Raises:
      ValueError: if there is no request, or they are not sorted, or lag or noise is
        out of range.
    """
    if not arrivals:
        raise ValueError("a simulation needs at least one request")
    times_s = [one.arrival_s for one in arrivals]
    if times_s != sorted(times_s):
        raise ValueError("arrivals must be sorted by arrival_s")
    if lag not in (0, 1):
        raise ValueError(f"lag={lag} is not 0 or 1")
    if not 0.0 <= noise <= 1.0:
        raise ValueError(f"noise={noise} is not in 0..1")
    started_s = clock.now_s() if clock else 0.0
    block_tokens = scheduler.buckets.block_tokens
    tally = Tally(arrivals, num_uncounted)
    run = _Simulation(
        scheduler,
        arrivals,
        times=_StepTimes(cost_model, block_tokens, noise, seed),
        tally=tally,
        lag=lag,
        records_steps=records_steps,
        advances_decodes=advances_decodes,
        clock=clock,
    )
    end_s = times_s[0] + max_spans * max(times_s[-1] - times_s[0], 60.0)
    is_stopped = False
    while not is_stopped and run.turn(end_s):
        if stop_after_violations is not None:
            is_stopped = tally.num_violations(run.now_s) > stop_after_violations
    counters = scheduler.counters
    return SimulationResult(
        outcomes=tally.outcomes(),
        steps=run.log.steps(cost_model, block_tokens) if run.log else None,
        counters=EngineCounters(
            num_programs=scheduler.buckets.num_programs,
            num_compiles_after_warmup=0,
            num_preemptions=counters.num_preemptions,
            prefix_hit_tokens=counters.prefix_hit_tokens,
        ),
        num_steps=run.num_steps,
        end_s=run.now_s,
        wall_s=clock.now_s() - started_s if clock else None,
        is_stopped=is_stopped,
    )
