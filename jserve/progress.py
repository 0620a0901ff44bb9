"""Shows the progress of a program in lines."""

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Iterator

_POLL_S = 0.2
_PERIOD_S = 5.0  # between two lines about one stage


def timed_lines() -> Callable[[str], None]:
    """Returns a writer of lines to stderr, with the time since this call."""
    start_s = time.monotonic()

    def write(line: str) -> None:
        elapsed_s = time.monotonic() - start_s
        print(f"[{elapsed_s:4.0f} s] {line}", file=sys.stderr, flush=True)

    return write


def _count_nothing() -> int:
    return 0


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a program, and how far it is.

    Attributes:
      phase: Name of the stage; "" between two stages and after the last.
      done: Count so far.
      left: Count until its end; 0 if it is unknown.
      seconds: Seconds since its beginning.
    """

    phase: str = ""
    done: int = 0
    left: int = 0
    seconds: float = 0.0


class Progress:
    """Shows the stage that a program is in, and its count, until it is closed.

    A thread shows it again every few seconds, even while the program is busy.

    Attributes:
      start_s: When it was made, `time.perf_counter` seconds.
    """

    def __init__(self, write: Callable[[str], None] | None = None):
        """Shows nothing yet.

        Args:
          write: Function that writes a line; None shows nothing at all.
        """
        self.start_s = time.perf_counter()
        self._write = write
        self._stage = ""
        self._total = 0
        self._count: Callable[[], int] = _count_nothing
        self._begun_s = self._said_s = 0.0
        self._said = ""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def note(self, line: str) -> None:
        """Writes a line, apart from the stage."""
        if self._write is not None:
            self._write(line)

    def begin(
        self, stage: str, total: int = 0, count: Callable[[], int] = _count_nothing
    ) -> None:
        """Ends the current stage, and begins another.

        Args:
          stage: Name of the stage; "" begins none.
          total: Count at the end of the stage; 0 if it is unknown.
          count: Function that returns the present count; called in another thread.
        """
        if self._closed.is_set():
            return
        with self._lock:
            self._show(is_last=True)
            self._stage, self._total, self._count = stage, total, count
            self._begun_s = time.monotonic()
            self._said = ""
            self._show()
        if self._write is not None and not self._thread.is_alive():
            self._thread.start()

    def stage(self) -> Stage:
        """Returns the current stage; any thread may call it."""
        with self._lock:
            if not self._stage:
                return Stage()
            done, seconds = self._count(), time.monotonic() - self._begun_s
            return Stage(self._stage, done, max(self._total - done, 0), seconds)

    @contextlib.contextmanager
    def doing(
        self, stage: str, total: int = 0, count: Callable[[], int] = _count_nothing
    ) -> Iterator[None]:
        """Begins a stage, and ends it when the context ends."""
        self.begin(stage, total, count)
        try:
            yield
        finally:
            self.begin("")

    def close(self) -> None:
        """Ends the last stage; nothing is shown afterwards."""
        self.begin("")
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(_POLL_S):
            with self._lock:
                self._show()

    def _show(self, *, is_last: bool = False) -> None:
        if self._write is None or not self._stage:
            return
        done = self._count()
        text = f"{self._stage}: {done} of {self._total}" if self._total else self._stage
        now_s = time.monotonic()
        is_due = not self._said or now_s - self._said_s >= _PERIOD_S
        if is_due or (is_last and text != self._said):
            spent_s = now_s - self._begun_s
            self._write(f"{text} ({spent_s:.0f} s)" if self._said else text)
            self._said, self._said_s = text, now_s
