"""What a request may send, and what a full queue says before it has been sent."""

import asyncio
import contextlib
import http.client
import pathlib
import shutil
import socket
import ssl
import subprocess
import time
import unittest.mock
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar, cast

import fastapi
import pytest
from fastapi import FastAPI

from jserve.config import EngineConfig
from jserve.server.bodies import BodyLimits, largest_honest_body, received_body
from jserve.server.http_limits import MAX_HEAD_BYTES
from jserve.server.serving import bind, make_server, url_of
from jserve.server_config import ServerConfig
from jserve_sched.requests.limits import RequestLimits
from tests.fake_loop import FakeLoop
from tests.fake_server import Served, read_until, serve_fake

POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve_fake(max_body_bytes=2**16) as served:
        yield served


def connect(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), timeout=10)


def answer_to(served: Served, *parts: bytes) -> bytes:
    """Sends a part of a request; returns the answer, which does not wait for more."""
    with connect(served) as sock:
        for part in parts:
            sock.sendall(part)
            time.sleep(0.01)  # so that each is read alone
        return read_until(sock, b"}}")


def is_open(sock: socket.socket) -> bool:
    """Whether the server has not closed a connection within a moment."""
    sock.settimeout(0.2)
    try:
        return sock.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


def test_connections_outlive_a_pause_of_a_pooled_client() -> None:
    app = FastAPI()
    config = make_server(app, ServerConfig()).config
    assert config.timeout_keep_alive == 75
    config = make_server(app, ServerConfig(keep_alive_s=7)).config
    assert config.timeout_keep_alive == 7


@pytest.mark.parametrize(
    "parts",
    [
        (POST, b"X: " + b"a" * MAX_HEAD_BYTES),  # a header without an end
        (POST + b"X: %s\r\n\r\n" % (b"a" * MAX_HEAD_BYTES),),
        (POST + b"X: a\r\n" * 20_000 + b"\r\n",),
        (CHUNKED + b"1\r\n{\r\n0\r\n", b"X: " + b"a" * MAX_HEAD_BYTES),  # a trailer
        (b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n",),
    ],
)
def test_a_head_over_the_limit(served: Served, parts: tuple[bytes, ...]) -> None:
    answer = answer_to(served, *parts)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"type": "invalid_request_error"' in answer
    assert str(MAX_HEAD_BYTES).encode() in answer


def test_heads_up_to_the_limit_and_many_on_one_connection(served: Served) -> None:
    client = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    with contextlib.closing(client):
        for _ in range(3):
            client.request("GET", "/health", None, {"X": "a" * (MAX_HEAD_BYTES - 99)})
            with client.getresponse() as response:
                assert (response.status, response.read()[:1]) == (200, b"{")
    answer = answer_to(served, b"nonsense\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ") and b"Invalid HTTP request" in answer


@pytest.mark.parametrize(
    "parts",
    [
        (POST + b"Content-Length: 65537\r\n\r\n",),  # not one byte of it is read
        (CHUNKED, *[b"8000\r\n" + b" " * 0x8000 + b"\r\n"] * 3),  # and no last chunk
    ],
)
def test_a_body_over_the_limit(served: Served, parts: tuple[bytes, ...]) -> None:
    answer = answer_to(served, *parts)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"65536" in answer


def test_a_client_that_still_writes_hears_of_the_limit(served: Served) -> None:
    answer = served.request("POST", "/v1/completions", b" " * 2**22)
    assert answer.status == 413
    with connect(served) as sock, pytest.raises(ConnectionError):
        sock.sendall(CHUNKED)
        for _ in range(2**10):  # 64 MiB
            sock.sendall(b"10000\r\n" + b" " * 2**16 + b"\r\n")


def test_a_connection_outlives_a_body_that_was_refused() -> None:
    with serve_fake(max_body_bytes=2**16, head_timeout_s=0.1) as served:
        with connect(served) as sock:
            sock.sendall(POST + b"Content-Length: 70000\r\n\r\n")
            read_until(sock, b"}}")
            sock.sendall(b" " * 70_000)
            assert is_open(sock)
            sock.settimeout(10)
            sock.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_until(sock, b"}").startswith(b"HTTP/1.1 200 ")
        with connect(served) as sock:
            sock.sendall(POST + b"Content-Length: 70000\r\n\r\n")
            read_until(sock, b"}}")
            sock.sendall(b" ")  # and no more of it
            assert sock.recv(1) == b""


def test_a_pipelining_client_that_leaves_cancels_its_request() -> None:
    with serve_fake(FakeLoop(step_s=0.01)) as served:
        with served.send(max_tokens=500) as sock:
            read_until(sock, b'"text": ')
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert served.loop.wait_idle(2.0)
        assert len(served.loop.cancelled) == 1


def test_a_refusal_is_not_written_into_an_answer(served: Served) -> None:
    with served.send(max_tokens=500) as sock:
        received = read_until(sock, b'"text": ')
        sock.sendall(b"nonsense\r\n\r\n")
        while part := sock.recv(65536):
            received += part
    assert b"Invalid" not in received and b"[DONE]" not in received
    assert served.loop.wait_idle()


def test_a_body_counts_until_it_has_been_read() -> None:
    class Request:
        headers: ClassVar[dict[str, str]] = {}

        async def stream(self) -> AsyncIterator[bytes]:
            yield b"12345"

    async def receive() -> None:
        limits = BodyLimits(max_body_bytes=9, timeout_s=1.0)
        async with received_body(cast(fastapi.Request, Request()), limits) as body:
            assert (body.num_bytes, limits.num_bytes) == (5, 5)
        assert limits.num_bytes == 0

    asyncio.run(receive())


def test_the_limit_follows_from_the_context() -> None:
    assert largest_honest_body(512) == 2**20
    assert largest_honest_body(2**17) == 2**16 + 48 * 2**17
    loop = FakeLoop()
    loop.limits = RequestLimits(max_model_len=2**16, num_kv_tokens=2**16)
    with serve_fake(loop) as served:
        text = b"\\u00e9" * 8 * 2**16  # 8 characters a token, each escaped
        answer = served.request("POST", "/v1/completions", b'{"prompt": "%s"}' % text)
        assert answer.error["code"] == "context_length_exceeded"  # it was read


def test_a_full_queue_answers_before_the_body_is_read() -> None:
    config = EngineConfig(max_queued_requests=1)
    with serve_fake(FakeLoop(config=config)) as served:
        served.loop.running.clear()
        with served.send():
            assert served.loop.wait_live(1)
            answer = answer_to(served, POST + b"Content-Length: 99\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 429 ")
            served.loop.running.set()
            assert served.loop.wait_idle()


def test_idle_connections_shut_nobody_out() -> None:
    with serve_fake(max_connections=4) as served, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(served)) for _ in range(4)]
        idle[2].sendall(POST)  # and no end of its head
        for _ in range(3):
            assert served.complete(max_tokens=1).status == 200
        assert [is_open(one) for one in idle] == [False, True, True, True]


def test_at_the_limit_of_running_requests_health_still_answers() -> None:
    with serve_fake(max_connections=2) as served:
        served.loop.running.clear()
        with served.send(), served.send():
            assert served.loop.wait_live(2)
            answer = served.complete()
            assert answer.status == 503
            assert "max_connections=2" in answer.error["message"]
            assert served.get("/health").status == 200
            assert served.get("/metrics").status == 200
            served.loop.running.set()
            assert served.loop.wait_idle()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((b"POST /v1/comp",), "--head_timeout_s"),
        ((b"\r\n", b"\r\n"), "--head_timeout_s"),
        ((POST + b"Content-Length: 9\r\n\r\n{",), "--body_timeout_s"),
    ],
)
def test_a_slow_request_is_ended(parts: tuple[bytes, ...], words: str) -> None:
    with serve_fake(head_timeout_s=0.1, body_timeout_s=0.1) as served:
        answer = answer_to(served, *parts)
        assert answer.startswith(b"HTTP/1.1 408 ") and words.encode() in answer
        assert b"connection: close" in answer.lower()


def test_a_client_that_reads_nothing_loses_its_request() -> None:
    loop = FakeLoop()
    loop.limits = RequestLimits(max_model_len=2**20, num_kv_tokens=2**20)
    fields = {"prompt": "a" * 15_000, "n": 128, "echo": True, "max_tokens": 10**6}
    with (
        serve_fake(loop, write_timeout_s=0.2) as served,
        served.send(small=True, **fields),
    ):
        assert loop.wait_live(128)
        assert loop.wait_idle(10.0)
        assert len(loop.cancelled) == 128


def test_a_client_that_reads_slowly_is_waited_for() -> None:
    async def play() -> None:
        transport = unittest.mock.MagicMock()
        transport.get_write_buffer_size.side_effect = [30, 20, 10, 10]
        server = make_server(FastAPI(), ServerConfig(write_timeout_s=0.01))
        protocol = cast(Any, server.config.http)(
            config=server.config, server_state=server.server_state, app_state={}
        )
        protocol.connection_made(transport)
        protocol.pause_writing()
        while transport.get_write_buffer_size.call_count < 4:
            transport.abort.assert_not_called()
            await asyncio.sleep(0.001)
        transport.abort.assert_called_once()
        protocol.connection_lost(None)

    asyncio.run(play())


def test_a_half_closed_client_receives_its_answer() -> None:
    with serve_fake(FakeLoop(step_s=0.01)) as served:
        for stream in (False, True):
            with served.send(stream=stream, max_tokens=20) as sock:
                sock.shutdown(socket.SHUT_WR)
                received = b"".join(iter(lambda: sock.recv(2**16), b""))
                assert received.count(b"HTTP/1.1 200 OK") == 1
                assert b'"finish_reason": "length"' in received
        served.loop.running.clear()
        for stream in (False, True):  # leaves, which looks the same at first
            with served.send(stream=stream):
                assert served.loop.wait_live(1)
            assert served.loop.wait_idle(5.0)
        served.loop.running.set()
        assert len(served.loop.cancelled) == 2


def test_an_old_client_receives_a_stream_without_chunks(served: Served) -> None:
    for stream in ("true", "false"):
        body = b'{"prompt": "hi", "stream": %s, "max_tokens": 3}' % stream.encode()
        head = POST.replace(b"1.1", b"1.0") + b"Content-Length: %d\r\n\r\n"
        with connect(served) as sock:
            sock.sendall(head % len(body) + body)
            received = b"".join(iter(lambda: sock.recv(2**16), b""))
        assert b"chunked" not in received and b"connection: close" in received
        answer = received.partition(b"\r\n\r\n")[2]
        if stream == "true":
            assert answer.startswith(b"data: {") and answer.endswith(b"[DONE]\n\n")
        else:
            assert b"content-length: %d" % len(answer) in received


def test_an_offer_of_http_2_is_declined(served: Served) -> None:
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"}
    assert served.complete(max_tokens=1, headers=offer).status == 200


def test_bodies_that_are_being_read_take_bounded_memory() -> None:
    with serve_fake(max_body_bytes=2**16) as served, contextlib.ExitStack() as stack:
        head = POST + b"Content-Length: 65536\r\n\r\n"
        for _ in range(33):
            sock = stack.enter_context(connect(served))
            sock.sendall(head + b" " * 64_000)
        assert served.get("/health").status == 200
        answer = answer_to(served, head, b" " * 60_000)
        assert answer.startswith(b"HTTP/1.1 503 ")


def test_a_unix_socket(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "socket"
    for _ in range(2):  # the second time over what is left of the first
        with bind(ServerConfig(unix_socket=path)) as listener:
            assert url_of(listener) == f"unix:{path}"
            listener.listen()
            with pytest.raises(OSError, match="in use"):
                bind(ServerConfig(unix_socket=path))


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate")
def test_tls_and_cross_origin_requests(tmp_path: pathlib.Path) -> None:
    cert = tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 "
    command += "-nodes -days 1 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-keyout", cert, "-out", tmp_path / "public.pem"],
        check=True,
        capture_output=True,
    )
    with cert.open("ab") as file:
        file.write((tmp_path / "public.pem").read_bytes())
    context = ssl.create_default_context(cafile=cert)
    context.check_hostname = False
    with pytest.raises(ValueError, match=r"tls_cert=.*public.pem with tls_key=None: "):
        ServerConfig(tls_cert=tmp_path / "public.pem")
    origin = "https://example.org"
    with serve_fake(tls_cert=cert, cors_origins=(origin,)) as served:
        client = http.client.HTTPSConnection(
            "127.0.0.1", served.port, timeout=10, context=context
        )
        with contextlib.closing(client):
            body = b'{"prompt": "hi", "stream": true, "max_tokens": 5}'
            client.request("POST", "/v1/completions", body, {"Origin": origin})
            with client.getresponse() as response:
                assert response.headers["access-control-allow-origin"] == origin
                assert response.read().count(b'"text": ') == 5
