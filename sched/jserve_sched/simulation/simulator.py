"""Runs the scheduler in virtual time against a cost model.

It runs the *same* `Scheduler` class that serves, so a simulation tests the code of the
server; only the durations of steps are simulated.

Several engines, each with its own scheduler, share one clock and one stream of
requests. Each request is routed to one of them when it arrives.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from jserve_sched.buckets.table import BucketTable
from jserve_sched.memory.ledger import KvLedger
from jserve_sched.outcomes import EngineCounters, Outcome
from jserve_sched.policies.base import Policy
from jserve_sched.requests.output_lengths import LengthEstimator, pool_length_errors
from jserve_sched.scheduler import Scheduler
from jserve_sched.simulation.cost_model import CostModel, scaled
from jserve_sched.simulation.disturbance import Disturbance
from jserve_sched.simulation.engine import SimulatedEngine
from jserve_sched.simulation.instances import Routing
from jserve_sched.simulation.log import Recording, Tally
from jserve_sched.simulation.workload import Arrival
from jserve_sched.steps import features
from jserve_sched.steps.record import StepRecord
from jserve_sched.timing.predictor import Predictor


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """Result of a simulation, over all its engines.

    Attributes:
      outcomes: Outcome of every request, in order of arrival.
      steps: Every step, in order of start; None if they were not recorded.
      step_features: Features of these steps, `[N, F]`.
      counters: Sums of the schedulers' counters.
      instances: The engines, with their requests and step counts.
      end_s: Virtual time at the end, seconds.
    """

    outcomes: list[Outcome]
    steps: list[StepRecord] | None
    step_features: np.ndarray
    counters: EngineCounters
    instances: Sequence[SimulatedEngine]
    num_steps: int
    end_s: float


def make_scheduler(
    *,
    policy: Policy,
    cost_model: CostModel,
    buckets: BucketTable,
    predictor: Predictor,
    max_model_len: int,
    lengths: LengthEstimator | None = None,
    enable_prefix_caching: bool = False,
) -> Scheduler:
    """Returns a scheduler within a cost model's limits.

    With a prefix cache, all prompts must have `Arrival.block_ids`: others are zeros.
    """
    page_size = cost_model.page_size
    return Scheduler(
        policy=policy,
        buckets=buckets,
        ledger=KvLedger(
            num_pages=cost_model.num_kv_tokens // page_size,
            page_size=page_size,
            enable_prefix_caching=enable_prefix_caching,
        ),
        predictor=predictor,
        max_num_seqs=cost_model.max_num_seqs,
        max_num_batched_tokens=cost_model.max_num_batched_tokens,
        max_model_len=max_model_len,
        lengths=lengths,
    )


class _Simulation:
    """State of one simulation; see `simulate` for the arguments."""

    def __init__(
        self,
        engines: Sequence[SimulatedEngine],
        arrivals: Sequence[Arrival],
        *,
        tally: Tally,
        routing: Routing | None,
    ):
        self._tally = tally
        self._engines = engines
        self._arrivals = arrivals
        self._routing = routing
        self._next = 0
        self.now_s = arrivals[0].arrival_s

    @property
    def _next_arrival_s(self) -> float:
        new = self._arrivals[self._next : self._next + 1]
        times_s = [one.arrival_s for one in new]
        times_s += [time_s for time_s, _ in self._tally.returns[:1]]
        return min(times_s, default=math.inf)

    def _hand_over(self) -> None:
        """Gives every request that has arrived by now to an engine."""
        while (due_s := self._next_arrival_s) <= self.now_s:
            if self._tally.returns and self._tally.returns[0][0] == due_s:
                one = self._tally.come_back()
            else:
                one = self._arrivals[self._next]
                self._next += 1
            place: int | None = 0
            if self._routing is not None:
                place = self._routing.place_of(one, self._engines, self.now_s)
            if place is None:
                self._engines[0].refuse(one, self.now_s)
            else:
                self._engines[place].submit(one, self.now_s)

    def turn(self, end_s: float) -> bool:
        """Moves to the next event; returns whether there was one before `end_s`."""
        self._hand_over()
        for engine in self._engines:
            if engine.due_s <= self.now_s or (
                engine.due_s == math.inf and engine.scheduler.has_work
            ):
                engine.start(self.now_s)
        due_s = min(engine.due_s for engine in self._engines)
        arrival_s = self._next_arrival_s
        if due_s == arrival_s == math.inf:
            self._check_done()
            return False
        # A single engine takes requests between its steps, as a server does. With
        # several, a router looks at their state at the time of the arrival, when no
        # step may be applied that has not ended yet.
        is_alone = self._routing is None
        self.now_s = due_s if is_alone and due_s < math.inf else min(due_s, arrival_s)
        for engine in self._engines:
            if engine.due_s <= self.now_s:
                engine.finish()
        return self.now_s < end_s

    def _check_done(self) -> None:
        """Raises RuntimeError if requests are left but no step is planned."""
        for scheduler in (engine.scheduler for engine in self._engines):
            if scheduler.has_work:
                raise RuntimeError(
                    f"at {self.now_s:.3f} s {scheduler.num_waiting} requests wait "
                    f"and {scheduler.num_running} run, but policy "
                    f"{type(scheduler.policy).__name__} plans nothing"
                )


def simulate(
    schedulers: Scheduler | Sequence[Scheduler],
    cost_model: CostModel,
    arrivals: Sequence[Arrival],
    *,
    routing: Routing | None = None,
    speeds: Sequence[float] = (),
    lag: int = 0,
    records_steps: bool = False,
    disturbance: Disturbance | None = None,
    seed: int = 0,
    max_spans: float = 5.0,
    stop_after_violations: int | None = None,
    num_uncounted: int = 0,
    max_returns: int = 0,
    clock: Callable[[], float] = lambda: 0.0,
) -> SimulationResult:
    """Serves requests in virtual time.

    Args:
      schedulers: A new scheduler, or one for each of several engines; see
        `make_scheduler`.
      cost_model: Machine of an engine of speed 1.
      arrivals: At least one request, sorted by arrival.
      routing: Chooses the engine of a request; None with a single engine.
      speeds: Speed of each engine's machine; empty if all are 1.
      lag: Number of steps in flight when the next is planned, 0 or 1.
      records_steps: Whether the result has the steps.
      disturbance: How durations differ from the cost model's; None is not at all.
      seed: Seed of the disturbance; each engine draws its own.
      max_spans: End of the simulation, as a multiple of the time between the first and
        the last arrival (of at least a minute). Requests still running then are
        unfinished.
      stop_after_violations: Most violations; the simulation ends as soon as more
        requests have certainly violated their SLO, and leaves the others unfinished.
        None sets no limit.
      num_uncounted: Number of requests at the start that do not count for that.
      max_returns: How often the client of a refused request comes back when told; its
        request counts once, as it ended last.
      clock: Real time, seconds, of which planning takes `plan_s`.

    Raises:
      ValueError: If the requests are not sorted, or two have the same id.
    """
    # Set up an engine for each scheduler.
    times_s = [one.arrival_s for one in arrivals]
    if times_s != sorted(times_s):
        raise ValueError("arrivals must be sorted by arrival_s")
    if isinstance(schedulers, Scheduler):
        schedulers = [schedulers]
    speeds = speeds or [1.0] * len(schedulers)
    block_tokens = schedulers[0].buckets.block_tokens
    step_s = functools.partial(cost_model.step_s, block_tokens=block_tokens)
    tally = Tally(arrivals, num_uncounted, max_returns)
    recording = Recording() if records_steps else None
    engines = [
        SimulatedEngine(
            one,
            step_s=functools.partial(
                scaled(cost_model, speed).step_s, block_tokens=block_tokens
            ),
            disturbed=(disturbance or Disturbance()).drawn((seed, place)),
            tally=tally,
            lag=lag,
            recording=recording,
            clock=clock,
        )
        for place, (one, speed) in enumerate(zip(schedulers, speeds, strict=True))
    ]
    # Run from event to event.
    run = _Simulation(engines, arrivals, tally=tally, routing=routing)
    end_s = times_s[0] + max_spans * max(times_s[-1] - times_s[0], 60.0)
    while run.turn(end_s):
        if stop_after_violations is not None and (
            tally.num_violations(run.now_s) > stop_after_violations
        ):
            break
    # Collect the results.
    steps, matrix = None, np.empty((0, features.NUM_FEATURES))
    if recording is not None:
        steps, matrix = recording.records(step_s)
    return SimulationResult(
        outcomes=tally.outcomes(),
        steps=steps,
        step_features=matrix,
        counters=EngineCounters(
            num_programs=schedulers[0].buckets.num_programs,
            num_compiles_after_warmup=0,
            num_preemptions=sum(one.counters.num_preemptions for one in schedulers),
            prefix_hit_tokens=sum(one.counters.prefix_hit_tokens for one in schedulers),
            length_errors=pool_length_errors(one.length_errors for one in schedulers),
        ),
        instances=engines,
        num_steps=sum(one.num_steps for one in engines),
        end_s=run.now_s,
    )
