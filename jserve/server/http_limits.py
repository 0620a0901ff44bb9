"""Limits on the size of an HTTP request, enforced before it is parsed."""

import functools
import http
from typing import Any

import httptools
from fastapi import Request
from uvicorn.protocols.http.httptools_impl import (
    HttpToolsProtocol,
    RequestResponseCycle,
)

from jserve.server.errors import error_json
from jserve.server.prompts import too_large

DIRECT_WRITE = "jserve.write"  # extension: writes a part of a body that has begun
MAX_HEAD_BYTES = 2**16  # the request line and all headers; httptools sets no limit
_MAX_UNREAD_BYTES = 2**24  # of a refused request's body, until its connection is closed
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


async def read_body(request: Request, max_body_bytes: int) -> bytes:
    """Returns a request's body; stops reading at the limit.

    Raises:
      ApiError: 413 if it is larger than `max_body_bytes`, or announced to be.
    """
    num_bytes = int(request.headers.get("content-length", 0))  # checked by httptools
    body = bytearray()
    if num_bytes <= max_body_bytes:
        async for part in request.stream():
            body += part
            num_bytes = len(body)
            if num_bytes > max_body_bytes:
                break
        else:
            return bytes(body)
    raise too_large(num_bytes, max_body_bytes)


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol, with limits on heads and on bodies that are not read.

    A head over the limit is answered with 431, and so are other overheads: trailers, or
    a body in tiny chunks. The rest of a refused request's body is read and dropped, so
    that a client that is still writing receives the answer; beyond a limit the
    connection is closed.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._head_bytes = 0  # received for this request, without its body
        self._unread_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Takes received data, at most some 256 KiB."""
        self._head_bytes += len(data)
        super().data_received(data)
        # The parser does not report a header until it is complete.
        if self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response("")

    def on_headers_complete(self) -> None:
        """Begins a request, unless its head is over the limit."""
        head_bytes = len(self.url) + sum(
            len(name) + len(value) + len(": \r\n") for name, value in self.headers
        )
        if head_bytes > MAX_HEAD_BYTES:
            self._head_bytes = head_bytes
            raise httptools.HttpParserError  # stops the parser
        super().on_headers_complete()
        write = functools.partial(self._write, self.cycle)
        self.scope["extensions"] = {DIRECT_WRITE: {"write": write}}

    def _write(self, cycle: RequestResponseCycle, part: bytes) -> bool:
        """Writes a part of a chunked body, unless the client has much to read yet."""
        if self.flow.write_paused or cycle.disconnected or not cycle.chunked_encoding:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(part), part))
        return True

    def on_body(self, body: bytes) -> None:
        """Takes a part of a body; parts after the response are dropped."""
        super().on_body(body)
        self._head_bytes -= len(body)
        if self.cycle.response_complete:
            self._unread_bytes += len(body)
            if self._unread_bytes > _MAX_UNREAD_BYTES:
                self.transport.close()

    def on_message_complete(self) -> None:
        """Ends a request; the next head begins."""
        super().on_message_complete()
        self._head_bytes = self._unread_bytes = 0

    def send_400_response(self, msg: str) -> None:
        """Refuses a head that is invalid or too large, and closes the connection."""
        if self.transport.is_closing():
            return
        status = 400
        if self._head_bytes > MAX_HEAD_BYTES:
            status = 431
            msg = f"the request's headers are over the limit of {MAX_HEAD_BYTES} bytes"
        body = error_json(status, msg)
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%s"
            % (status, http.HTTPStatus(status).phrase.encode(), len(body), body)
        )
        self.transport.close()
