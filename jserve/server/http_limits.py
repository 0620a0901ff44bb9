"""Limits of connections and of what is sent by them, enforced before it is parsed."""

import asyncio
import dataclasses
import functools
import http
import logging
import math
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import (
    HttpToolsProtocol,
    RequestResponseCycle,
)

from jserve.server.errors import ApiError
from jserve.server.formats import COMMENT_EVENT

DIRECT_WRITE = "jserve.write"  # extension: writes a part of a body that has begun
MAX_HEAD_BYTES = 2**16  # the request line and all headers; httptools sets no limit
_RESERVED_CONNECTIONS = 32  # beyond the limit, for operators
_WARN_EVERY_S = 60.0
_H2C = re.compile(rb"\r\nupgrade:[ \t]*h2c", re.IGNORECASE)
_FIRST_PROBE_S = 0.25  # doubles each time
_MAX_UNREAD_BYTES = 2**24  # of a refused request's body, until its connection is closed

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass
class ConnectionLimits:
    """Limits of a server's connections, and those that are idle.

    Attributes:
      max_connections: Most open connections that may send requests of any kind.
      head_timeout_s: Longest time from the first byte of a head to its end.
      write_timeout_s: Longest time in which a client reads nothing of what is sent.
      idle: Connections without a request, in the order in which they became so.
      warned_s: Time of the last warning, on the event loop's clock.
    """

    max_connections: int
    head_timeout_s: float
    write_timeout_s: float
    idle: "dict[BoundedHttp, None]" = dataclasses.field(default_factory=dict)
    warned_s: float = -math.inf


async def _send_plain(
    cycle: RequestResponseCycle,
    send: Callable[[Any], Awaitable[None]],
    message: dict[str, Any],
) -> None:
    """Sends a part of an answer that has no chunks, whatever its length will be."""
    cycle.expected_content_length = len(message.get("body", b""))
    await send(message)


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol, with limits on connections, heads, and bodies not read.

    At the limit of connections the one that has been idle for longest is closed; one
    that has not sent all of its head is idle, too. If none is, the new connection may
    only ask for health and metrics, and beyond a reserve for that it is closed.

    A head over the limit is answered with 431, and so are other overheads: trailers, or
    a body in tiny chunks. The rest of a refused request's body is read and dropped, so
    that a client that is still writing receives the answer; beyond a limit of its size
    or time the connection is closed. So it is, with its request cancelled, when a
    client does not read.

    A client that ends only its half of the connection receives its answer. What the
    kernel reports is the same when it has left, until something is written to it: so
    `_probe` writes what clients ignore.
    """

    def __init__(self, *args: Any, limits: ConnectionLimits, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._cycles: list[RequestResponseCycle] = []  # requests not yet answered
        self._is_over = False  # the limit of connections
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # received for this request, without its body
        self._unread_bytes = 0

    def connection_made(  # type: ignore[override]
        self, transport: asyncio.Transport
    ) -> None:
        """Takes a new connection, and closes an idle one if there are too many."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(1)  # is paused while anything is unsent
        self._become_idle()
        limits = self._limits
        num_over = len(self.connections) - limits.max_connections
        if num_over <= 0:
            return
        if self.loop.time() > limits.warned_s + _WARN_EVERY_S:
            limits.warned_s = self.loop.time()
            _LOGGER.warning("at max_connections=%d", limits.max_connections)
        longest = next(iter(limits.idle))
        if num_over > _RESERVED_CONNECTIONS:
            self.transport.close()
        elif longest is not self:
            del limits.idle[longest]
            longest.transport.close()
        else:
            self._is_over = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets a connection, and ends its requests."""
        self._begin_request()
        for timer in (self._unread_timer, self._probe_timer):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()  # or the timer would hold this object
        for cycle in self._cycles:  # uvicorn ends only the last one
            cycle.disconnected = True
            cycle.message_event.set()
        self._cycles.clear()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begins the time in which the client has to read."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """Ends that time."""
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()

    def _expect_reading(self, num_unsent: int | None = None) -> None:
        """Cuts the connection if nothing of what is unsent is read in time."""
        left = self.transport.get_write_buffer_size()
        if num_unsent is not None and left >= num_unsent:
            self.transport.abort()
            return
        self._unread_timer = self.loop.call_later(
            self._limits.write_timeout_s, self._expect_reading, left
        )

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keeps the connection, except with TLS, of a client that waits for answers."""
        cycle = self._cycles[-1] if self._cycles else None
        if cycle is None or cycle.more_body or self.scheme == "https":
            return False
        cycle.keep_alive = False
        if self._probe_timer is None:
            self._probe(_FIRST_PROBE_S)
        return True

    def _probe(self, delay_s: float) -> None:
        if not self._cycles:
            return
        cycle = self._cycles[0]
        if cycle.response_started:
            self._write(cycle, COMMENT_EVENT)
        elif cycle.scope["http_version"] == "1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._probe_timer = self.loop.call_later(delay_s, self._probe, 2 * delay_s)

    def _become_idle(self) -> None:
        self._limits.idle[self] = None
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _begin_request(self) -> None:
        """Ends the time in which a connection is idle."""
        self._limits.idle.pop(self, None)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_slow_head(self) -> None:
        timeout_s = self._limits.head_timeout_s
        if self._unread_bytes:  # not a head, but the rest of a body already refused
            self.transport.close()
        self._refuse(408, f"the head took over {timeout_s:g} s (--head_timeout_s)")

    def on_response_complete(self) -> None:
        """Makes the connection idle, unless its next request has begun."""
        self._cycles.pop(0)
        super().on_response_complete()
        if not self._cycles and not self.transport.is_closing():
            self._become_idle()

    def data_received(self, data: bytes) -> None:
        """Takes received data, at most some 256 KiB."""
        self._head_bytes += len(data)
        if b"h2c" in data and self in self._limits.idle:
            # Java's client offers HTTP/2 with each first request; a parser that sees it
            # would not read the body.
            head, end, rest = data.partition(b"\r\n\r\n")
            data = _H2C.sub(b"", head) + end + rest
        if self._head_timer is None and self in self._limits.idle:
            self._head_timer = self.loop.call_later(
                self._limits.head_timeout_s, self._end_slow_head
            )
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
        self._begin_request()
        if self._is_over and not self.url.startswith((b"/health", b"/metrics")):
            most = self._limits.max_connections
            self._refuse(503, f"max_connections={most} are open already")
            raise httptools.HttpParserError
        super().on_headers_complete()
        self._cycles.append(self.cycle)
        if (
            self.scope["http_version"] == "1.0"
        ):  # has no chunks, and ends with the answer
            self.cycle.chunked_encoding = False
            send = functools.partial(_send_plain, self.cycle, self.cycle.send)
            self.cycle.send = send  # type: ignore[method-assign]
        write = functools.partial(self._write, self.cycle)
        self.scope["extensions"] = {DIRECT_WRITE: {"write": write}}

    def _write(self, cycle: RequestResponseCycle, part: bytes) -> bool:
        """Writes a part of a chunked body, unless the client has much to read yet."""
        is_open = cycle in self._cycles and cycle.chunked_encoding
        if self.flow.write_paused or not is_open:
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
        if self in self._limits.idle:  # it was the rest of a refused request's body
            self._begin_request()
            self._become_idle()

    def send_400_response(self, msg: str) -> None:
        """Refuses a head that is invalid or too large, and closes the connection."""
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"the headers have over {MAX_HEAD_BYTES} bytes")
        else:
            self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        """Closes the connection, with an error unless an answer has begun."""
        is_answering = self._cycles and self._cycles[0].response_started
        if not is_answering and not self.transport.is_closing():
            body = ApiError(message, status=status).body
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n%s"
                % (status, http.HTTPStatus(status).phrase.encode(), len(body), body)
            )
        self.transport.close()
