"""Warm-up: compiles, runs and times the programs, while requests are served already.

First a covering table is compiled, the few large buckets in which every step can run,
and requests are served. Then a thread compiles the finer tables of the bucket plan, in
its order, and the thread that runs the engine begins to use each between two steps:

    a thread           compile table 1 | compile table 2 | ...          | choose
    the engine's       ...step, run 1, step, use 1, step, run 2, ..., time all, use

A program is run once before a request needs it. Its steps are priced by one rough
timing while the compiler is still busy. Afterwards the programs are timed properly, in
rounds and in the order of the plan, until all rounds are done or the time for it is
over: what was not timed is guessed, and learned from the steps of requests.
"""

import collections
import concurrent.futures
import importlib
import itertools
import logging
import math
import pathlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from jserve.engine.engine import TIMED_REPEATS, Engine
from jserve.engine.machine import num_cpus
from jserve.engine.program_kinds import programs_of
from jserve.progress import Progress
from jserve.records.events import ProgramStart, StartUp
from jserve.timing.serving_predictor import ServingPredictor
from jserve.timing.step_times import load_step_times, save_step_times
from jserve_sched.buckets.growth import BucketPlan
from jserve_sched.buckets.table import Bucket, BucketTable
from jserve_sched.scheduler import Scheduler
from jserve_sched.timing.predictor import StepSample
from jserve_sched.timing.table import TablePredictor

_LOG = logging.getLogger("jserve")
_SHARE = 0.25  # of the engine's time goes to padded runs while requests wait

_Job = concurrent.futures.Future[Any]


class WarmUp:
    """Warms one engine up, in turns that the engine's thread takes.

    `cover`, then `start`, then `turn` whenever `is_due`, until `serving` is there; or
    `run` for all of it at once.

    Attributes:
      serving: The predictor that plans once all is warm; None before that.
      progress: Shows how far it is; closed once all is warm, or on `stop`.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        scheduler: Scheduler,
        plan: BucketPlan,
        predictor: TablePredictor,
        times_path: pathlib.Path | None,
        choose: Callable[[BucketTable], ServingPredictor],
        timing_s: float = 0.0,
        progress: Progress | None = None,
    ):
        """Does nothing yet.

        Args:
          scheduler: Plans with the covering table of `plan`.
          plan: The tables to compile and to hand over, in this order.
          predictor: Predictor of the final table, which prices steps until all is warm.
          times_path: File of the step times, which are not measured if it has them;
            None keeps none.
          choose: Function that returns the predictor for the table reached, once all is
            warm.
          timing_s: Seconds for timing programs, half of it beside the compiler and half
            afterwards; requests between two steps are included. 0 sets no limit.
        """
        self.serving: ServingPredictor | None = None
        self.progress = progress or Progress()
        self._engine = engine
        self._scheduler = scheduler
        self._plan = plan
        self._left = collections.deque(plan.tables[1:])
        self._predictor = predictor
        self._times_path = times_path
        self._is_timed = times_path is not None and load_step_times(
            times_path, predictor
        )
        self._are_times_lost = False
        self._choose = choose
        self._timing_s = timing_s or math.inf
        self._samples: dict[Bucket, Sequence[StepSample]] = {}
        self._num_timed = 0
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "warm-up")
        self._wake: Callable[[], object] = threading.Event().set
        self._task: Iterator[_Job | None] | None = None
        self._job: _Job | None = None  # that the task waits for
        self._not_before_s = 0.0
        self._stopping = threading.Event()
        self._reached_s: dict[str, float] = {}  # by field of StartUp

    @property
    def num_programs_total(self) -> int:
        """Number of programs made, and of those that the final table still lacks."""
        buckets = self._engine.programs.buckets | set(self._plan.final.buckets)
        return len(programs_of(buckets))

    def start_up(self) -> StartUp:
        """Returns how it went so far."""
        programs = self._engine.programs
        return StartUp(
            programs=tuple(programs.reports),
            wall_s=programs.wall_s,
            stage=self.progress.stage(),
            **self._reached_s,
        )

    def run(self) -> None:
        """Warms up completely, where no requests are to be served meanwhile."""
        self.cover()
        self.start(self._wake)
        try:
            while self._task is not None:
                self.turn(is_idle=True)
        finally:
            self.stop()

    def check_kept(self) -> None:
        """Checks that a later start will find all that this one made.

        Raises:
          OSError: If something could not be kept.
        """
        reports = self._engine.programs.reports
        num_lost = sum(one.executable_bytes is None for one in reports)
        if num_lost or self._are_times_lost:
            lost = (
                f"{num_lost} of {len(reports)} programs" if num_lost else "step times"
            )
            raise OSError(f"{lost} could not be kept in the compile cache")

    def cover(self) -> None:
        """Makes the covering table; after it the engine can run every step.

        It ends early after `begin_no_more`.
        """
        # The first fit needs this, which takes half a second to import.
        self._submit(importlib.import_module, "scipy.optimize")
        table = self._plan.covering
        self._show_compiling(len(programs_of(table.buckets)))
        self._compile(table)
        if self._stopping.is_set():
            return
        self._reached_s["covering_s"] = self._engine.programs.wall_s
        for bucket in table.buckets:
            self._engine.first_run(bucket)
        self._reach("ready_s")

    def start(self, wake: Callable[[], object]) -> None:
        """Begins to compile the finer tables.

        Args:
          wake: Called in another thread when a turn has come due.
        """
        self._wake = wake
        self._task = self._finish()
        self._resume()

    def begin_no_more(self) -> None:
        """Begins no further compilation; any thread may call it."""
        self._stopping.set()

    def stop(self) -> None:
        """Ends the thread; waits for the compilations it has begun."""
        self.begin_no_more()
        self._pool.shutdown()
        self.progress.close()

    def is_due(self, *, is_idle: bool) -> bool:
        """Returns whether a turn has something to do, and may do it now.

        Beside live requests, when it is not `is_idle`, turns get a quarter of the time.
        """
        job = self._job
        if self._task is None or (job is not None and not job.done()):
            return False
        return is_idle or time.perf_counter() >= self._not_before_s

    def turn(self, *, is_idle: bool) -> None:
        """Runs the next piece, which is as long as a step; no step may be in flight.

        Waits for a piece if there is none.

        Raises:
          BaseException: What a compilation, or the choice of a predictor, raised.
        """
        if self._job is not None:
            self._job.result()
        start_s = time.perf_counter()
        self._resume()
        end_s = time.perf_counter()
        if not is_idle:
            self._not_before_s = end_s + (end_s - start_s) * (1 / _SHARE - 1)

    # In the engine's thread.

    def _resume(self) -> None:
        assert self._task is not None
        try:
            self._job = next(self._task)
        except StopIteration:
            self._task = self._job = None

    def _finish(self) -> Iterator[_Job | None]:
        """Yields at the end of each piece, or a job to wait for before the next."""
        self._show_compiling(self.num_programs_total)
        reached = self._plan.covering
        job = self._submit(self._compile_next)
        rough_s = self._timing_s / 2
        rough_s -= yield from self._time(reached.buckets, 1, rough_s)
        while True:
            yield job
            if self._stopping.is_set():
                return  # the table may not be whole
            table = job.result()
            if table is None:
                break
            job = self._submit(self._compile_next)
            new = [one for one in table.buckets if one not in set(reached.buckets)]
            reached = table
            for bucket in new:
                self._engine.first_run(bucket)
                yield None
            rough_s -= yield from self._time(new, 1, rough_s)
            self._scheduler.use_buckets(reached)
        yield from self._time_all(reached)
        self.progress.begin("choosing the predictor")
        job = self._submit(self._choose_predictor, reached)
        yield job
        serving = job.result()
        self._scheduler.predictor = serving.predictor
        self._engine.mark_warm()
        self._reach("warm_s")
        self.progress.close()
        self.serving = serving

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> _Job:
        job = self._pool.submit(work, *arguments)
        job.add_done_callback(lambda _: self._wake())
        return job

    def _time(
        self, buckets: Sequence[Bucket], num_rounds: int, most_s: float
    ) -> Generator[None, None, float]:
        """Times programs in rounds, for at most this long; returns how long it took."""
        if self._is_timed:
            return 0.0
        start_s = time.monotonic()
        for index, bucket in itertools.product(range(num_rounds), buckets):
            if time.monotonic() - start_s >= most_s:
                break
            samples = []
            for sample in self._engine.timed_pass([bucket], repeats=1):
                samples.append(sample)
                yield
            # The first round replaces a rough timing.
            earlier = self._samples[bucket] if index else ()
            self._samples[bucket] = (*earlier, *samples)
            self._num_timed += 1
        self._predictor.fit(itertools.chain.from_iterable(self._samples.values()))
        return time.monotonic() - start_s

    def _time_all(self, reached: BucketTable) -> Iterator[None]:
        """Times the programs of a table, those that are worth most first."""
        if self._is_timed:
            return
        order = (bucket for table in self._plan.tables for bucket in table.buckets)
        made = set(reached.buckets)
        buckets = [bucket for bucket in dict.fromkeys(order) if bucket in made]
        self._num_timed = 0
        total = len(buckets) * TIMED_REPEATS
        self.progress.begin("timing programs", total, lambda: self._num_timed)
        most_s = min(self._timing_s / 2, self._engine.programs.wall_s)
        yield from self._time(buckets, TIMED_REPEATS, most_s)
        if self._num_timed < total:
            self.progress.note(
                f"timed {self._num_timed} of {total} in the {most_s:.0f} s for it, "
                "half of warm_up_timing_s and at most what compiling took; the other "
                "times are guessed, then learned from requests"
            )

    def _reach(self, field: str) -> None:
        self._reached_s[field] = time.perf_counter() - self.progress.start_s

    def _show_compiling(self, total: int) -> None:
        programs = self._engine.programs
        self.progress.begin(
            "compiling programs, or loading them", total, lambda: programs.num_compiled
        )

    # In the pool's thread.

    def _compile(self, table: BucketTable) -> None:
        self._engine.compile(table.buckets, self._stopping.is_set)

    def _choose_predictor(self, reached: BucketTable) -> ServingPredictor:
        if not self._is_timed and reached == self._plan.final:
            path = self._times_path
            self._are_times_lost = not path or not save_step_times(
                path, self._predictor
            )
        return self._choose(reached)

    def _compile_next(self) -> BucketTable | None:
        """Compiles and returns the next table; None if there is none.

        Tables are skipped as long as they are too small to occupy all cores.
        """
        made = self._engine.programs.buckets
        found, num_new = None, 0
        while self._left and num_new < num_cpus():
            found = self._left.popleft()
            num_new = len(set(found.buckets) - made)
        if found is not None:
            self._compile(found)
        return found


def start_up_table(start_up: StartUp) -> str:
    """Returns what each program took, as text."""
    programs = start_up.programs
    counts = collections.Counter(one.source for one in programs)
    total = ProgramStart(
        f"{len(programs)} programs",
        sum(one.trace_s for one in programs),
        sum(one.compile_s for one in programs),
        sum(one.executable_bytes or 0 for one in programs),
        ", ".join(f"{count} {source}" for source, count in sorted(counts.items())),
    )
    lines = ["program        trace s  compile s         bytes  source"]
    for one in (*programs, total):
        size = "-" if one.executable_bytes is None else f"{one.executable_bytes:,}"
        times = f"{one.trace_s:>8.3f}  {one.compile_s:>9.3f}"
        lines.append(f"{one.program:<12}  {times}  {size:>12}  {one.source}")
    lines.append(
        f"several at a time: {start_up.wall_s:.1f} s by the clock, which is "
        "jserve:compile_seconds"
    )
    return "\n".join(lines)
