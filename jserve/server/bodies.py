"""Bodies of requests, received within limits on size, time and memory."""

import asyncio
import contextlib
import dataclasses
import io
import os
import tempfile
from collections.abc import AsyncIterator
from typing import IO, cast

from fastapi import Request

from jserve.server.errors import ApiError
from jserve.server.prompts import too_large

SMALL_BODY_BYTES = 2**14  # read on the event loop, in some milliseconds at most
_MAX_BODIES = 32  # of the largest size, that are received or read
_MIN_BODY_BYTES = 2**20
_BODY_BYTES_A_TOKEN = 48
_BODY_BYTES_BESIDE_TOKENS = 2**16


def largest_honest_body(context_tokens: int) -> int:
    r"""Returns the size of the largest body that a client may have reason to send.

    48 bytes per token of the context hold a token id with its comma, or 8 characters of
    text (tokenizers average 3 to 5) each escaped as `\uXXXX`, or the 38 bytes of a
    message's `{"role": "assistant", "content": ""}, `. 64 KiB more hold all other
    fields, mainly stop strings. The size is at least 1 MiB, for lists of short prompts.

    Args:
      context_tokens: Most tokens of prompt and output together.
    """
    body_bytes = _BODY_BYTES_BESIDE_TOKENS + _BODY_BYTES_A_TOKEN * context_tokens
    return max(body_bytes, _MIN_BODY_BYTES)


class Body:
    """A body: in memory while it is small, then in a file that a worker maps.

    On Linux the file is in memory, too, and has no name; elsewhere it is a temporary
    one.
    """

    def __init__(self, data: bytes = b""):
        self.num_bytes = 0
        self.data = bytearray()
        self._file: IO[bytes] | None = None
        self.add(data)

    def add(self, part: bytes) -> None:
        """Adds the next part."""
        self.num_bytes += len(part)
        if self.num_bytes > SMALL_BODY_BYTES:
            self.file().write(part)
        else:
            self.data += part

    def file(self) -> IO[bytes]:
        """Returns the file, after moving the body there."""
        if self._file is None:
            self._file = _make_file()
            self._file.write(self.data)
            self.data.clear()
        return self._file

    def read(self) -> bytes:
        """Returns a copy of all of it."""
        if self._file is None:
            return bytes(self.data)
        return os.pread(self._file.fileno(), self.num_bytes, 0)

    def path(self) -> str:
        """Returns the path by which another process opens the file."""
        name = self.file().name
        return name if isinstance(name, str) else f"/proc/{os.getpid()}/fd/{name}"

    def is_marked(self) -> bool:
        """Whether its reader has begun, which makes the file longer by a byte."""
        return os.fstat(self.file().fileno()).st_size > self.num_bytes

    def close(self) -> None:
        """Frees the file."""
        if self._file is not None:
            self._file.close()


def _make_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):  # on Linux
        return cast(IO[bytes], io.FileIO(os.memfd_create("body"), "r+b"))
    return cast(IO[bytes], tempfile.NamedTemporaryFile(buffering=0))


@dataclasses.dataclass
class BodyLimits:
    """Limits of all bodies that are received, or wait to be read, or are read.

    Attributes:
      max_body_bytes: Largest body.
      timeout_s: Longest time from a request's headers to the end of its body.
      num_bytes: Size of what has been received of them.
    """

    max_body_bytes: int
    timeout_s: float
    num_bytes: int = 0


@contextlib.asynccontextmanager
async def received_body(request: Request, limits: BodyLimits) -> AsyncIterator[Body]:
    """Gives a request's body, which counts until the context ends.

    Raises:
      ApiError: 413 if it is larger than `max_body_bytes`, or announced to be; 408 if it
        takes too long; 503 if all that is being read takes too much memory.
    """
    num_bytes = int(request.headers.get("content-length", 0))  # checked by httptools
    if num_bytes > limits.max_body_bytes:
        raise too_large(num_bytes, limits.max_body_bytes)
    with contextlib.closing(Body()) as body:
        try:
            async with asyncio.timeout(limits.timeout_s):
                async for part in request.stream():
                    limits.num_bytes += len(part)
                    body.add(part)
                    if body.num_bytes > limits.max_body_bytes:
                        raise too_large(body.num_bytes, limits.max_body_bytes)
                    if limits.num_bytes > _MAX_BODIES * limits.max_body_bytes:
                        message = "too many large bodies are being read"
                        raise ApiError(message, status=503, retry_after_s=1.0)
        except TimeoutError:
            error = ApiError(
                f"{body.num_bytes} bytes of the body came in {limits.timeout_s:g} s, "
                "and not its end (--body_timeout_s)",
                status=408,
            )
            error.headers["Connection"] = "close"
            raise error from None
        else:
            yield body
        finally:
            limits.num_bytes -= body.num_bytes
