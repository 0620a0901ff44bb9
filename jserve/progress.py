"""How start-up goes, for the person who waits: a bar, or a line every few seconds."""

import threading
import time
from collections.abc import Callable
from typing import Any

_POLL_S = 0.2
_BRIEF_S = 1.0  # between two lines of one stage, while something is made
_SILENT_S = 10.0  # after which the same line comes again, with the time it took


def _count_nothing() -> int:
    return 0


class Progress:
    """Shows which stage start-up is in, and how far, until it is closed.

    A stage is begun, and what it has made is then asked for in a thread. The first
    line comes at once; after that something is shown at least every 10 s.
    """

    def __init__(
        self, say: Callable[[str], None] | None = None, *, is_bar: bool = False
    ):
        """Shows nothing yet.

        Args:
          say: takes the lines; None shows nothing at all.
          is_bar: whether a bar is drawn on stderr instead, a terminal.
        """
        self._say = say
        self._is_bar = is_bar
        self._bar: Any = None  # tqdm's, on a terminal
        self._stage = ""
        self._total = 0
        self._count: Callable[[], int] = _count_nothing
        self._begun_s = self._said_s = 0.0
        self._said = ""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def begin(
        self, stage: str, total: int = 0, count: Callable[[], int] = _count_nothing
    ) -> None:
        """Ends the stage before, and begins another.

        Args:
          stage: what is being done.
          total: how much of it there is; 0 if that is not known.
          count: tells how much is done; called in another thread.
        """
        if self._say is None or self._closed.is_set():
            return
        with self._lock:
            self._show(is_last=True)
            self._stage, self._total, self._count = stage, total, count
            self._begun_s = time.monotonic()
            self._said = ""
            self._show()
        if not self._thread.is_alive():
            self._thread.start()

    def close(self) -> None:
        """Ends the last stage; nothing is shown after."""
        with self._lock:
            if not self._closed.is_set():
                self._show(is_last=True)
            self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(_POLL_S):
            with self._lock:
                self._show()

    def _show(self, *, is_last: bool = False) -> None:
        if self._say is None or not self._stage or self._closed.is_set():
            return
        done = self._count()
        if self._is_bar:
            self._draw(done, is_last)
            return
        text = f"{self._stage}: {done} of {self._total}" if self._total else self._stage
        now_s = time.monotonic()
        silent_s = now_s - self._said_s
        if text == self._said:
            is_due = silent_s >= _SILENT_S
        else:
            is_due = not self._said or is_last or silent_s >= _BRIEF_S
        if is_due:
            spent_s = now_s - self._begun_s
            self._say(f"{text} ({spent_s:.0f} s)" if self._said else text)
            self._said, self._said_s = text, now_s

    def _draw(self, done: int, is_last: bool) -> None:
        import tqdm

        if self._bar is None:
            form = None if self._total else "{desc} {elapsed}"
            self._bar = tqdm.tqdm(
                desc=self._stage, total=self._total or None, bar_format=form
            )
        self._bar.n = done
        self._bar.refresh()
        if is_last:
            self._bar.close()
            self._bar = None
