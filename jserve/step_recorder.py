"""The step log as a file: what a bucket fit needs of each step, and nothing else.

A line is a list of numbers, each made by `int` or `float` from a field named here, so
no text and no id can get into the file, whatever a record carries. Lines of two kinds
alternate: an object (a header: what holds from here on) and the lists of steps that
follow it.

    {"format": "jserve-step-log", "version": 1, "fields": ["end_s", ...], ...}
    [12.345678, 32, 16, 30, 13, 4, 9, 1, 0.0301, 0.0287, 0.0312]

`jserve_tools.step_logs` reads it.
"""

import contextlib
import fcntl
import functools
import io
import json
import logging
import logging.handlers
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

_LOG = logging.getLogger("jserve")

FORMAT = "jserve-step-log"
VERSION = 1
MIN_MAX_BYTES = 2**16

_seconds = functools.partial(round, ndigits=7)  # a tenth of a microsecond

# Name and kind of each number of a line, in order.
FIELDS: dict[str, Callable[[Any], float]] = {
    "end_s": _seconds,
    "num_rows": int,
    "num_blocks": int,
    "used_rows": int,
    "used_blocks": int,
    "decode_pages": int,
    "block_pages": int,
    "leaves_work": int,
    "bucket_s": _seconds,
    "used_s": _seconds,
    "duration_s": _seconds,
}


def header_line(facts: Mapping[str, Any]) -> bytes:
    """Returns the line that says what holds for the steps after it.

    Raises:
      ValueError: if the facts are not JSON.
    """
    head = {"format": FORMAT, "version": VERSION, "fields": list(FIELDS)}
    try:
        text = json.dumps(head | dict(facts), separators=(",", ":"), allow_nan=False)
    except TypeError as error:
        raise ValueError(f"the header of a step log: {error}") from None
    return text.encode() + b"\n"


def step_line(step: Any) -> bytes:
    """Returns a step's line: the attributes that `FIELDS` names, in that order."""
    numbers = [kind(float(getattr(step, name))) for name, kind in FIELDS.items()]
    return json.dumps(numbers, separators=(",", ":")).encode() + b"\n"


class StepRecorder(logging.handlers.RotatingFileHandler):
    """Appends steps to a bounded file, which one process at a time may write.

    Before it passes half of `max_bytes` the file becomes FILE.1, in place of an older
    one, and a new one begins with the same header. A log of an earlier run is
    continued. When writing fails (a full disk) there is one warning, and recording
    ends; serving goes on. Only the owner may read the file.
    """

    def __init__(self, path: pathlib.Path, header: Mapping[str, Any], max_bytes: int):
        """Opens the file and writes the header.

        Args:
          path: the log; its folder is made if there is none.
          header: what holds for all steps: limits, policy, buckets, step times.
          max_bytes: bound of the log, both files together.

        Raises:
          ValueError: if the bound is too small for the header, or the file is there
            and is not a step log, or another process writes it. It is left as it is.
          OSError: if the file cannot be written.
        """
        if max_bytes < MIN_MAX_BYTES:
            raise ValueError(
                f"step_log_max_bytes={max_bytes} is below {MIN_MAX_BYTES} bytes"
            )
        self._header = b""
        self._is_open = True
        self.maxBytes = max_bytes // 2  # before `_checked` asks for it
        self._checked(header)
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, maxBytes=max_bytes // 2, backupCount=1)
        self.use_header(header)

    def use_header(self, header: Mapping[str, Any]) -> None:
        """Says what holds from the next step on, such as more buckets.

        Raises:
          ValueError: if it is too large for the bound.
        """
        self._header = self._checked(header)
        self._write(self._header)

    def append(self, step: Any) -> None:
        """Takes the next step, which has the attributes that `FIELDS` names."""
        self._write(step_line(step))

    def close(self) -> None:
        """Closes the file; nothing is recorded after."""
        self._is_open = False
        super().close()

    def doRollover(self) -> None:
        """Begins the next file, with the header."""
        super().doRollover()
        assert self.stream is not None
        self.stream.write(self._header.decode())

    def handleError(self, record: logging.LogRecord) -> None:
        """Ends the recording, with a warning."""
        _LOG.warning("steps are no longer recorded: %s", sys.exc_info()[1])
        with contextlib.suppress(OSError):  # what is buffered cannot be written either
            self.close()

    def _write(self, line: bytes) -> None:
        if self._is_open:
            self.handle(logging.makeLogRecord({"msg": line.decode().rstrip("\n")}))

    def _checked(self, header: Mapping[str, Any]) -> bytes:
        line = header_line(header)
        if len(line) > self.maxBytes // 2:  # the other half is for steps
            raise ValueError(
                f"step_log_max_bytes={2 * self.maxBytes} is too small for a header "
                f"of {len(line)} bytes: at least {4 * len(line)}"
            )
        return line

    def _open(self) -> io.TextIOWrapper:
        """Opens the log, or begins one, for this process alone."""
        path = pathlib.Path(self.baseFilename)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise ValueError(f"{path} is not a regular file, which could be rotated")
        begin = f'{{"format":"{FORMAT}"'.encode()
        if path.exists() and not begin.startswith(path.read_bytes()[: len(begin)]):
            raise ValueError(f"{path} is there already and is not a step log")
        mode = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        handle = os.open(path, mode, 0o600)
        file = os.fdopen(handle, "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ValueError(f"another process records its steps in {path}") from None
        os.fchmod(file.fileno(), 0o600)  # one of an earlier run may be open to others
        # A crash may have cut the last line short.
        file.truncate(path.read_bytes().rfind(b"\n") + 1)
        return file


def rotated(path: pathlib.Path) -> pathlib.Path:
    """Returns where the older half of a log lies."""
    return path.with_name(path.name + ".1")
