"""Limits on what one HTTP request may send, enforced before any of it is parsed."""

import http
from typing import Any

import httptools
from fastapi import Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from jserve.server.errors import ApiError, error_json

MAX_HEAD_BYTES = 2**16  # the request line and all headers; httptools sets no limit
_MAX_UNREAD_BYTES = 2**24  # of a refused request's body, before its connection ends
_MIN_BODY_BYTES = 2**20
_BODY_BYTES_A_TOKEN = 48
_BODY_BYTES_BESIDE_TOKENS = 2**16


def largest_honest_body(context_tokens: int) -> int:
    r"""Returns the size of the largest body that a client may have reason to send.

    48 bytes a token of the context hold a token id with its comma, or 8 characters of
    text (tokenizers average 3 to 5) each escaped as `\uXXXX`, or the 38 bytes of a
    message's `{"role": "assistant", "content": ""}, `. 64 KiB more hold all other
    fields, stop strings above all. At least 1 MiB, for lists of short prompts.

    Args:
      context_tokens: most tokens of prompt and output together.
    """
    body_bytes = _BODY_BYTES_BESIDE_TOKENS + _BODY_BYTES_A_TOKEN * context_tokens
    return max(body_bytes, _MIN_BODY_BYTES)


async def read_body(request: Request, max_body_bytes: int) -> bytes:
    """Returns a request's body, reading no more than the limit allows.

    Raises:
      ApiError: 413 if it is larger than `max_body_bytes`, or says that it will be.
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
    raise ApiError(
        f"the body has {num_bytes} bytes or more; the limit is {max_body_bytes} bytes "
        "(--max_body_bytes)",
        status=413,
        code="body_too_large",
    )


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol, with limits on heads and on bodies that nobody reads.

    A head over the limit is answered with 431, and so is any other overhead: trailers,
    or a body in tiny chunks. The rest of a refused request's body is dropped, so that a
    client which is still writing it hears why; one that goes on is cut off.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._head_bytes = 0  # of this request: all that has come, less its body
        self._unread_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Takes what has come, at most some 256 KiB."""
        self._head_bytes += len(data)
        super().data_received(data)
        # The parser keeps a header to itself until it is complete.
        if self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response("")

    def on_headers_complete(self) -> None:
        """Begins a request, unless its head is over the limit."""
        head_bytes = len(self.url) + sum(
            len(name) + len(value) + len(": \r\n") for name, value in self.headers
        )
        if head_bytes > MAX_HEAD_BYTES:
            self._head_bytes = head_bytes
            raise httptools.HttpParserError  # has the parser stop
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Takes a part of a body; what comes after the response is dropped."""
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
        """Refuses a head that is no HTTP or too large, and closes the connection."""
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
