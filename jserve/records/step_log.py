"""The step log as a file: the numbers of each `StepRecord`, and no text.

A header, an object, says what holds from here on and names the fields; a list of
numbers follows for each step. Only numbers can be rounded, so no text can get into it.

    {"format": "jserve-step-log", "version": 1, "fields": ["step_id", ...], ...}
    [17, 12.345678, 12.310042, 32, 16, 30, 13, ...]

`jserve_tools.fitting.step_logs` reads it.
"""

import contextlib
import fcntl
import io
import json
import logging
import logging.handlers
import math
import os
import pathlib
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jserve_sched.steps.record import StepRecord

_LOG = logging.getLogger("jserve")
Header = Callable[[], Mapping[str, Any]]  # what holds for the steps that come next

FORMAT = "jserve-step-log"
VERSION = 1
_KINDS = {
    name: kind
    for name, kind in typing.get_type_hints(StepRecord).items()
    if kind is not str
}
FIELDS = tuple(_KINDS)  # in the order of a line
_NEEDED = set(StepRecord._fields) - set(StepRecord._field_defaults)
_PLACES = 7  # a tenth of a microsecond


def header_line(facts: Mapping[str, Any]) -> str:
    """Returns the line that says what holds for the steps after it."""
    head = {"format": FORMAT, "version": VERSION, "fields": FIELDS, **facts}
    return json.dumps(head, separators=(",", ":"), allow_nan=False)


def step_line(step: StepRecord) -> str:
    """Returns the line of a step."""
    numbers = [round(getattr(step, name), _PLACES) for name in FIELDS]
    return json.dumps(numbers, separators=(",", ":"))


def fields_of(header: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the fields of the lines after a header; older logs have fewer.

    Raises:
      ValueError: If it is not the header of a step log.
    """
    fields = tuple(header.get("fields") or ())
    known = header.get("format") == FORMAT and header.get("version") == VERSION
    if not known or not _NEEDED <= set(fields) <= set(FIELDS):
        raise ValueError(f"this is not a header of {FORMAT} version {VERSION}")
    return fields


def read_step(fields: Sequence[str], numbers: Sequence[float]) -> StepRecord:
    """Returns the step of a line with these fields.

    Raises:
      ValueError: If it is not finite numbers of 0 or more, whole where they are counts.
    """
    found: dict[str, Any] = {}
    for name, value in zip(fields, numbers, strict=True):
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name}={value} is not a number of 0 or more")
        found[name] = _KINDS[name](value)
        if found[name] != value:
            raise ValueError(f"{name}={value} is not a whole number")
    return StepRecord(**found)


class StepRecorder(logging.handlers.RotatingFileHandler):
    """Appends steps to a bounded file, which one process at a time may write.

    Before it passes half of `max_bytes` the file becomes FILE.1, in place of an older
    one, and a new one begins with the same header. A log of an earlier run is
    continued. When writing fails (a full disk) there is one warning, and recording
    ends; serving goes on. Only the owner may read the file. `close` is logging's, which
    closes every handler when it is set up again: the next step opens the file again.
    `is_open` says whether it records.
    """

    def __init__(self, path: pathlib.Path, header: Header, max_bytes: int):
        """Opens the file, in a folder made for it, and writes the header.

        Args:
          header: Returns limits, policy, buckets and step times.
          max_bytes: Bound of the log, both files together.

        Raises:
          ValueError: If the file is there and is not a step log, or another process
            writes it. It is left as it is.
          OSError: If the file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, maxBytes=max_bytes // 2, backupCount=1)
        self.is_open = True
        self._make_header = header
        self.begin_stretch()

    def begin_stretch(self) -> None:
        """Writes a header, which holds from the next step on."""
        self._header = header_line(self._make_header())
        if 2 * len(self._header) > self.maxBytes:  # the other half is for steps
            self._end(f"a header of {len(self._header)} bytes is over a quarter of it")
        self._write(self._header)

    def append(self, step: StepRecord) -> None:
        """Takes the next step."""
        self._write(step_line(step))

    def end(self) -> None:
        """Closes the file; nothing is recorded after."""
        self.is_open = False
        with contextlib.suppress(OSError):  # what is buffered cannot be written either
            self.close()

    def doRollover(self) -> None:
        """Begins the next file, with the header."""
        super().doRollover()
        assert self.stream is not None
        self.stream.write(self._header + self.terminator)

    def handleError(self, record: logging.LogRecord) -> None:
        """Ends the recording, with a warning."""
        self._end(sys.exc_info()[1])

    def _end(self, reason: object) -> None:
        if self.is_open:
            _LOG.warning("steps are no longer recorded: %s", reason)
        self.end()

    def _write(self, line: str) -> None:
        if self.is_open:
            self.handle(logging.makeLogRecord({"msg": line}))

    def _open(self) -> io.TextIOWrapper:
        """Opens the log, or begins one, for this process alone."""
        path = pathlib.Path(self.baseFilename)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise ValueError(f"{path} is not a regular file, which could be rotated")
        begin = f'{{"format":"{FORMAT}"'.encode()
        if path.exists() and not begin.startswith(path.read_bytes()[: len(begin)]):
            raise ValueError(f"{path} is there already and is not a step log")
        mode = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        file = os.fdopen(os.open(path, mode, 0o600), "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ValueError(f"another process records its steps in {path}") from None
        os.fchmod(file.fileno(), 0o600)  # one of an earlier run may be open to others
        # A crash may have cut the last line short.
        file.truncate(path.read_bytes().rfind(b"\n") + 1)
        return file
