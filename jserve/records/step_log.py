"""The step log as a file: what a bucket fit needs of each step, and nothing else.

A header, an object, says what holds from here on; a list of numbers follows for each
step. Only numbers can be rounded, so no text and no id can get into the file.

    {"format": "jserve-step-log", "version": 1, "fields": ["end_s", ...], ...}
    [12.345678, 32, 16, 30, 13, 4, 9, 1, 0.0301, 0.0287, 0.0312]

`jserve_tools.fitting.step_logs` reads it.
"""

import contextlib
import fcntl
import io
import json
import logging
import logging.handlers
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

_LOG = logging.getLogger("jserve")

FORMAT = "jserve-step-log"
VERSION = 1
# Attributes of a `StepRecord`, in the order of a line.
FIELDS = (
    *("end_s", "num_rows", "num_blocks", "used_rows", "used_blocks"),
    *("decode_pages", "block_pages", "leaves_work", "bucket_s", "used_s"),
    "duration_s",
)
_PLACES = 7  # a tenth of a microsecond


def header_line(facts: Mapping[str, Any]) -> str:
    """Returns the line that says what holds for the steps after it."""
    head = {"format": FORMAT, "version": VERSION, "fields": FIELDS, **facts}
    return json.dumps(head, separators=(",", ":"), allow_nan=False)


def step_line(step: Any) -> str:
    """Returns the line of a step, recorded or simulated."""
    numbers = [round(getattr(step, name), _PLACES) for name in FIELDS]
    return json.dumps(numbers, separators=(",", ":"))


class StepRecorder(logging.handlers.RotatingFileHandler):
    """Appends steps to a bounded file, which one process at a time may write.

    Before it passes half of `max_bytes` the file becomes FILE.1, in place of an older
    one, and a new one begins with the same header. A log of an earlier run is
    continued. When writing fails (a full disk) there is one warning, and recording
    ends; serving goes on. Only the owner may read the file. `close` is logging's, which
    closes every handler when it is set up again: the next step opens the file again.
    """

    def __init__(self, path: pathlib.Path, header: Mapping[str, Any], max_bytes: int):
        """Opens the file, in a folder made for it, and writes the header.

        Args:
          header: What holds for all steps: limits, policy, buckets, step times.
          max_bytes: Bound of the log, both files together.

        Raises:
          ValueError: If the file is there and is not a step log, or another process
            writes it. It is left as it is.
          OSError: If the file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, maxBytes=max_bytes // 2, backupCount=1)
        self._is_open = True
        self.use_header(header)

    def use_header(self, header: Mapping[str, Any]) -> None:
        """Says what holds from the next step on, such as more buckets."""
        self._header = header_line(header)
        if 2 * len(self._header) > self.maxBytes:  # the other half is for steps
            self._end(f"a header of {len(self._header)} bytes is over a quarter of it")
        self._write(self._header)

    def append(self, step: Any) -> None:
        """Takes the next step, which has the attributes that `FIELDS` names."""
        self._write(step_line(step))

    def end(self) -> None:
        """Closes the file; nothing is recorded after."""
        self._is_open = False
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
        if self._is_open:
            _LOG.warning("steps are no longer recorded: %s", reason)
        self.end()

    def _write(self, line: str) -> None:
        if self._is_open:
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
