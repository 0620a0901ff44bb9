"""Says what a program is doing, so that it is never silent for ten seconds."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

_PERIOD_S = 5.0


class Progress:
    """Prints results for people on stdout, and what is being done on stderr.

    A thread repeats the latter with the elapsed time, even while the program is busy,
    in plain lines that read the same in a terminal and in a log.
    """

    def __init__(self, *, period_s: float = _PERIOD_S):
        """Starts the clock.

        Args:
          period_s: Seconds between two lines about the same work.
        """
        self._start_s = time.monotonic()
        self._period_s = period_s

    def say(self, line: str) -> None:
        """Prints a result."""
        print(line, flush=True)

    def note(self, line: str) -> None:
        """Prints what is being done, with the elapsed time."""
        elapsed_s = time.monotonic() - self._start_s
        print(f"[{elapsed_s:4.0f} s] {line}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def doing(
        self, what: str, count: Callable[[], str] | None = None
    ) -> Iterator[None]:
        """Notes the work inside, at its begin and again and again until its end.

        Args:
          what: What is being done.
          count: How far it has come, such as "3 of 12 requests"; called in a thread.
        """
        done = threading.Event()

        def tick() -> None:
            while not done.wait(self._period_s):
                self.note(f"{what}: {count()}" if count is not None else what)

        self.note(what)
        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
