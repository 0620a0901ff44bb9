"""The step log as a file: what a bucket fit needs of each step, and nothing else.

The one idea: a line of the log is a list of numbers, each made by `int` or `float`
from a field named here, so no text and no id can get into the file, whatever a record
carries. Lines of two kinds alternate: an object (a header: what holds from here on)
and the lists of steps that follow it.

    {"format": "jserve-step-log", "version": 1, "fields": ["end_s", ...], ...}
    [12.345678, 32, 16, 30, 13, 4, 9, 1, 0.0301, 0.0287, 0.0312]

`jserve_tools.step_logs` reads it.
"""

import json
import logging
import os
import pathlib
import stat
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from jserve_sched.buckets import UsedBucket

_LOG = logging.getLogger("jserve")

FORMAT = "jserve-step-log"
VERSION = 1
MIN_MAX_BYTES = 2**16
_FLUSH_EVERY = 64  # steps between two writes: about a second of serving
_PLACES = 7  # a tenth of a microsecond


def _seconds(value: float) -> float:
    return round(float(value), _PLACES)


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


class LoggedStep(UsedBucket, Protocol):
    """What is logged of a step; see `jserve.events.StepRecord`."""

    @property
    def end_s(self) -> float:
        """When it ended, on the clock of whoever ran it, seconds."""
        ...

    @property
    def bucket_s(self) -> float:
        """Predicted time of the bucket, seconds."""
        ...

    @property
    def used_s(self) -> float:
        """Predicted time of the same step without padding, seconds."""
        ...

    @property
    def duration_s(self) -> float:
        """How long it took, seconds."""
        ...


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


def step_line(step: LoggedStep) -> bytes:
    """Returns a step's line: the numbers that `FIELDS` names, in that order."""
    numbers = [kind(getattr(step, name)) for name, kind in FIELDS.items()]
    return json.dumps(numbers, separators=(",", ":")).encode() + b"\n"


class StepRecorder:
    """Appends steps to a bounded file; used by one thread of one process.

    Before it passes half of `max_bytes` the file becomes FILE.1, in place of an older
    one, and a new one begins with the same header. So both together stay within
    `max_bytes` and hold, once full, the steps of the last half of it at least. A log
    of an earlier run is gone on with.

    Steps are handed to the system 64 at a time, never waited for on the disk, so a
    crash loses the last 64 at most. When writing fails (a full disk) there is one
    warning, and recording ends; serving goes on. Only the owner may read the file.
    """

    def __init__(self, path: pathlib.Path, header: Mapping[str, Any], max_bytes: int):
        """Opens the file and writes the header.

        Args:
          path: the log; its folder is made if there is none.
          header: what holds for all steps: limits, policy, shapes, step times.
          max_bytes: bound of the log, both files together.

        Raises:
          ValueError: if the bound is too small for the header, or the file is there
            and is no step log. Such a file is left as it is.
          OSError: if the file cannot be written.
        """
        if max_bytes < MIN_MAX_BYTES:
            raise ValueError(
                f"step_log_max_bytes={max_bytes} is below {MIN_MAX_BYTES} bytes"
            )
        self._path = path
        self._half_bytes = max_bytes // 2
        self._header = self._checked(header_line(header))
        self._lines: list[bytes] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: int | None
        self._file, self._size = _open(path)
        try:
            self._write(self._header)
        except BaseException:
            self._abandon()
            raise

    def use_header(self, header: Mapping[str, Any]) -> None:
        """Says what holds from the next step on, such as more shapes.

        One that is too large for the bound ends the recording, with a warning.
        """
        self._flush()
        if self._file is None:
            return
        line = header_line(header)
        try:
            self._header = self._checked(line)
        except ValueError as error:
            self._give_up(error)
        self._try_write(line)

    def append(self, step: LoggedStep) -> None:
        """Takes the next step."""
        if self._file is None:
            return
        self._lines.append(step_line(step))
        if len(self._lines) >= _FLUSH_EVERY:
            self._flush()

    def close(self) -> None:
        """Writes what is left and closes the file; nothing is recorded after."""
        self._flush()
        self._abandon()

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            self._try_write(b"".join(lines))

    def _try_write(self, content: bytes) -> None:
        if self._file is None:
            return
        try:
            self._write(content)
        except (OSError, ValueError) as error:  # of the disk, or of the next file
            self._give_up(error)

    def _checked(self, header: bytes) -> bytes:
        # The other half of a new file is for the steps of one flush.
        if len(header) > self._half_bytes // 2:
            raise ValueError(
                f"step_log_max_bytes={2 * self._half_bytes} is too small for a header "
                f"of {len(header)} bytes: at least {4 * len(header)}"
            )
        return header

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        if self._size + len(content) > self._half_bytes:
            self._rotate()
            if content != self._header:
                content = self._header + content
        while content:  # a disk that fills up takes a part, then fails
            num_bytes = os.write(self._file, content)
            self._size += num_bytes
            content = content[num_bytes:]

    def _rotate(self) -> None:
        os.replace(self._path, rotated(self._path))
        old = self._file
        self._file, self._size = _open(self._path)
        assert old is not None
        os.close(old)

    def _give_up(self, error: Exception) -> None:
        _LOG.warning("steps are no longer recorded: %s", error)
        self._abandon()

    def _abandon(self) -> None:
        self._lines.clear()
        if self._file is not None:
            os.close(self._file)
            self._file = None


def rotated(path: pathlib.Path) -> pathlib.Path:
    """Returns where the older half of a log lies."""
    return path.with_name(path.name + ".1")


def _open(path: pathlib.Path) -> tuple[int, int]:
    """Opens a log, or begins one; returns the file and its size, bytes.

    Raises:
      ValueError: if something is there that is no step log.
      OSError: if it cannot be opened.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link: rotation would move it, not its file")
    special = os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW  # pipes, terminals, links
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | special, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ValueError(f"{path} is no regular file")
        size = _cut_to_whole_lines(file, path)
        os.fchmod(file, 0o600)  # one of an earlier run may be open to others
    except BaseException:
        os.close(file)
        raise
    return file, size


def _cut_to_whole_lines(file: int, path: pathlib.Path) -> int:
    """Takes a line off that a crash cut short; returns the size left, bytes.

    Raises:
      ValueError: if the file holds anything but a step log.
    """
    begin = f'{{"format":"{FORMAT}"'.encode()
    if not begin.startswith(os.pread(file, len(begin), 0)):
        raise ValueError(f"{path} is there already and is no step log")
    content = os.pread(file, os.fstat(file).st_size, 0)
    size = content.rfind(b"\n") + 1
    if size < len(content):
        os.ftruncate(file, size)
    return size
