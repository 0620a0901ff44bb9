"""Warm-up: from an engine that has compiled nothing to one that has nothing left to.

The one idea: compiling needs no device and running needs no compiler, so both go on
at once. First a covering set is made, the few large shapes in which every step can
run, and requests are served. Then a thread compiles finer tables, most valuable edge
first, and the thread that runs the engine takes each over between two steps:

    this thread        compile table 1 | compile table 2 | ...          | choose
    the engine's       ...step, run 1, step, use 1, step, run 2, ..., time all, use

A program is run once before a request needs it. One rough timing while the compiler
is still busy prices its steps; once it is quiet every program is timed properly.
"""

import collections
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from jserve.cpus import num_cpus
from jserve.engine import Engine
from jserve.events import ProgramStart, StartUp
from jserve.serving_predictor import ServingPredictor
from jserve.step_times import StepTimes
from jserve_sched.buckets import Bucket, BucketTable
from jserve_sched.predictor import StepSample
from jserve_sched.scheduler import Scheduler
from jserve_sched.table_predictor import TablePredictor

_LOG = logging.getLogger("jserve")
_SHARE = 0.25  # of the engine's time goes to padded runs while requests wait

ChoosePredictor = Callable[[TablePredictor, BucketTable], ServingPredictor]


class _AllCompiled:
    """The thread's word that no further table comes."""


_Message = BucketTable | _AllCompiled | ServingPredictor | BaseException


def _wake_nobody() -> None:
    pass


class WarmUp:
    """Warms one engine up, in turns that its own thread takes.

    `cover`, then `start`, then `turn` whenever `is_due`, until `serving` is there; or
    `run` for all of it at once.

    Attributes:
      serving: the predictor that plans once all is warm; None before that.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        scheduler: Scheduler,
        tables: Sequence[BucketTable],
        predictor: TablePredictor,
        times: StepTimes | None,
        choose: ChoosePredictor,
        max_compile_s: float = 0.0,
    ):
        """Does nothing yet.

        Args:
          engine: has compiled nothing.
          scheduler: plans what the engine runs; gets each table, and the predictor.
          tables: the covering one first, each with all edges of the one before it.
          predictor: of the last table; prices steps until all is warm.
          times: where to keep what is measured; None if the predictor holds it
            already, and nothing is to be measured.
          choose: given the step times and the table reached, picks what plans then.
          max_compile_s: no further table is begun that is expected to end later; 0
            sets no limit.
        """
        self.serving: ServingPredictor | None = None
        self._engine = engine
        self._scheduler = scheduler
        self._tables = tuple(tables)
        self._predictor = predictor
        self._times = times
        self._choose = choose
        self._max_compile_s = max_compile_s
        self._rough: list[StepSample] = []
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._task: Iterator[None] | None = None
        self._not_before_s = 0.0
        self._wake: Callable[[], None] = _wake_nobody
        self._thread = threading.Thread(target=self._main, name="warm-up", daemon=True)
        self._are_timed = threading.Event()
        self._stopping = threading.Event()
        self._are_times_lost = False
        self._start_s = self._covering_s = 0.0
        self._ready_s: float | None = None
        self._warm_s: float | None = None

    @property
    def num_programs_total(self) -> int:
        """Programs made, and those the last table still lacks."""
        return len(self._engine.programs.buckets | set(self._tables[-1].buckets))

    def start_up(self) -> StartUp:
        """Returns how it went so far."""
        return StartUp(
            ready_s=self._ready_s,
            warm_s=self._warm_s,
            covering_s=self._covering_s,
            programs=tuple(
                ProgramStart(
                    program=str(one.bucket),
                    trace_s=one.trace_s,
                    compile_s=one.compile_s,
                    executable_bytes=one.executable_bytes,
                    source=one.source,
                )
                for one in tuple(self._engine.programs.reports)
            ),
        )

    def run(self) -> ServingPredictor:
        """Does all of it; for those who have no requests to serve meanwhile."""
        self.cover()
        self.start(_wake_nobody)
        try:
            while self.serving is None:
                self.turn(is_idle=True)
        finally:
            self.stop()
        return self.serving

    def check_kept(self) -> None:
        """Checks that a later start will find all that this one made.

        Raises:
          OSError: if something could not be kept.
        """
        reports = self._engine.programs.reports
        num_lost = sum(one.executable_bytes is None for one in reports)
        if num_lost:
            raise OSError(
                f"{num_lost} of {len(reports)} programs could not be kept in the "
                "compile cache"
            )
        if self._are_times_lost:
            raise OSError("step times could not be kept in the compile cache")

    def cover(self) -> None:
        """Makes the covering set; after it the engine can run every step.

        Unless it is told to begin no more meanwhile.
        """
        self._start_s = time.perf_counter()
        table = self._tables[0]
        self._compile(table)
        if self._stopping.is_set():
            return
        self._covering_s = time.perf_counter() - self._start_s
        for _ in self._take_over(table, table.buckets):
            pass
        self._ready_s = time.perf_counter() - self._start_s

    def start(self, wake: Callable[[], None]) -> None:
        """Begins to compile the finer tables.

        Args:
          wake: called in another thread when a turn has come due.
        """
        self._wake = wake
        self._thread.start()

    def begin_no_more(self) -> None:
        """Lets no further compilation begin; any thread may ask for it."""
        self._stopping.set()

    def stop(self) -> None:
        """Ends the thread; waits for the compilations it has begun."""
        self.begin_no_more()
        self._are_timed.set()
        if self._thread.is_alive():
            self._thread.join()

    def is_due(self, *, is_idle: bool) -> bool:
        """Tells whether a turn has something to do, and may do it now.

        Args:
          is_idle: no request is live. Else turns get a quarter of the time.
        """
        if self._task is None and self._inbox.empty():
            return False
        return is_idle or time.perf_counter() >= self._not_before_s

    def turn(self, *, is_idle: bool) -> None:
        """Does the next piece, of the length of a step; no step may be in flight.

        Waits for a piece if there is none.

        Args:
          is_idle: as in `is_due`.

        Raises:
          BaseException: what a compilation, or the choice of a predictor, raised.
        """
        if self._task is None:
            message = self._inbox.get()
            if isinstance(message, BaseException):
                raise message
            self._task = self._work_on(message)
        start_s = time.perf_counter()
        if next(self._task, self) is self:
            self._task = None
        end_s = time.perf_counter()
        if not is_idle:
            self._not_before_s = end_s + (end_s - start_s) * (1 / _SHARE - 1)

    # In the engine's thread; each `yield` is an end of a turn.

    def _work_on(
        self, message: BucketTable | _AllCompiled | ServingPredictor
    ) -> Iterator[None]:
        if isinstance(message, BucketTable):
            buckets = set(self._scheduler.buckets.buckets)
            new = [one for one in message.buckets if one not in buckets]
            yield from self._take_over(message, new)
        elif isinstance(message, _AllCompiled):
            if self._times is not None:
                yield from self._time_all()
            self._are_timed.set()
        else:
            self._scheduler.predictor = message.predictor
            self._engine.programs.mark_warm()
            self._warm_s = time.perf_counter() - self._start_s
            self.serving = message

    def _take_over(self, table: BucketTable, new: Sequence[Bucket]) -> Iterator[None]:
        """Runs what is new in a table, and lets the scheduler plan with it."""
        for bucket in new:
            self._engine.first_run(bucket)
            yield
        if self._times is not None:
            for sample in self._engine.timed_pass(new, repeats=1):
                self._rough.append(sample)
                yield
            self._predictor.fit(self._rough)
        self._scheduler.use_buckets(table)

    def _time_all(self) -> Iterator[None]:
        samples = []
        for sample in self._engine.timed_pass(self._scheduler.buckets.buckets):
            samples.append(sample)
            yield
        self._predictor.fit(samples)

    # In a thread of its own.

    def _main(self) -> None:
        try:
            table = self._compile_finer()
            self._send(_AllCompiled())
            self._are_timed.wait()
            if self._stopping.is_set():
                return
            if self._times is not None and table == self._tables[-1]:
                self._are_times_lost = not self._times.save(self._predictor)
            self._send(self._choose(self._predictor, table))
        except BaseException as error:  # of any kind: the engine waits for word
            self._send(error)

    def _send(self, message: _Message) -> None:
        self._inbox.put(message)
        self._wake()

    def _compile_finer(self) -> BucketTable:
        """Compiles table after table; returns the last one."""
        reached = self._tables[0]
        left = collections.deque(self._tables[1:])
        while left and not self._stopping.is_set():
            table = self._next_table(left)
            if table is None:
                break
            self._compile(table)
            if self._stopping.is_set():
                break  # it may not be whole
            self._send(table)
            reached = table
        return reached

    def _compile(self, table: BucketTable) -> None:
        self._engine.compile(table.buckets, should_stop=self._stopping.is_set)

    def _next_table(self, left: collections.deque[BucketTable]) -> BucketTable | None:
        """Takes the next table to compile off those left; None if time is up.

        Tables are skipped as long as they are too small to occupy all cores.
        """
        programs = self._engine.programs
        num_reports = max(len(programs.reports), 1)
        trace_s = sum(one.trace_s for one in programs.reports) / num_reports
        compile_s = sum(one.compile_s for one in programs.reports) / num_reports
        found = None
        while left:
            num_new = sum(not programs.has(one) for one in left[0].buckets)
            # One is traced at a time, and as many are compiled as there are cores.
            num_rounds = math.ceil(num_new / num_cpus())
            expected_s = programs.wall_s + num_new * trace_s + num_rounds * compile_s
            if 0 < self._max_compile_s < expected_s:
                if found is None:
                    self._say_what_is_left_out()
                break
            found = left.popleft()
            if num_new >= num_cpus():
                break
        return found

    def _say_what_is_left_out(self) -> None:
        programs = self._engine.programs
        _LOG.warning(
            "max_compile_s=%g: %d of %d programs are left out",
            self._max_compile_s,
            self.num_programs_total - programs.num_compiled,
            self.num_programs_total,
        )


def start_up_table(start_up: StartUp) -> str:
    """Returns what each program took, as text."""
    rows = [("program", "trace s", "compile s", "bytes", "source")]
    for one in start_up.programs:
        size = "-" if one.executable_bytes is None else f"{one.executable_bytes:,}"
        times = f"{one.trace_s:.3f}", f"{one.compile_s:.3f}"
        rows.append((one.program, *times, size, one.source))
    programs = start_up.programs
    rows.append(
        (
            f"{len(programs)} programs",
            f"{sum(one.trace_s for one in programs):.3f}",
            f"{sum(one.compile_s for one in programs):.3f}",
            f"{sum(one.executable_bytes or 0 for one in programs):,}",
            ", ".join(
                f"{count} {source}"
                for source, count in sorted(
                    collections.Counter(one.source for one in programs).items()
                )
            ),
        )
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = (str.ljust, str.rjust, str.rjust, str.rjust, str.ljust)
    return "\n".join(
        "  ".join(
            side(cell, width)
            for side, cell, width in zip(sides, row, widths, strict=True)
        ).rstrip()
        for row in rows
    )
