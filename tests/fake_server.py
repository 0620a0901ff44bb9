"""A real HTTP server over a scripted engine, for tests of it and of its clients.

The file is also a program, so that tests can launch it.
"""

import asyncio
import contextlib
import dataclasses
import http.client
import json
import pathlib
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from jserve.config import EngineConfig
from jserve.records.events import (
    Health,
)
from jserve.server.app import build_app
from jserve.server.serving import make_server
from jserve.server_config import ServerConfig
from jserve.text.tokenizer import Tokenizer, load_tokenizer
from tests.fake_loop import STARTED, FakeLoop

COMMAND = (sys.executable, str(pathlib.Path(__file__)))


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error = self.json()["error"]
        assert set(error) - {"retry_after_s"} == {"message", "type", "param", "code"}
        return error

    def chunks(self) -> list[dict[str, Any]]:
        """The JSON of each event of a stream, which must have ended correctly."""
        assert self.body.endswith(b"data: [DONE]\n\n"), self.body[-200:]
        events = self.body.decode().split("\n\n")
        assert events[-1] == ""
        return [json.loads(one.removeprefix("data: ")) for one in events[:-2]]


@dataclasses.dataclass(frozen=True)
class Served:
    loop: FakeLoop
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        return self.request("GET", path, headers=headers)

    def complete(
        self, *, headers: dict[str, str] | None = None, **fields: Any
    ) -> Answer:
        body = {"model": "fake", "prompt": "hi", **fields}
        return self.request(
            "POST", "/v1/completions", json.dumps(body).encode(), headers
        )

    def chat(self, **fields: Any) -> Answer:
        body = {"messages": [{"role": "user", "content": "hi"}], **fields}
        return self.request("POST", "/v1/chat/completions", json.dumps(body).encode())

    def send(self, *, small: bool = False, **fields: Any) -> socket.socket:
        """Sends a request for a streamed completion, and reads nothing.

        Args:
          small: Whether the client's kernel receives little that is not read.
        """
        body = json.dumps({"prompt": "hi", "stream": True, **fields}).encode()
        sock = socket.socket()
        sock.settimeout(10)
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", self.port))
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: "
            + str(len(body)).encode()
            + b"\r\n\r\n"
            + body
        )
        return sock


def read_until(sock: socket.socket, mark: bytes) -> bytes:
    """Data received up to and including a mark."""
    received = b""
    while mark not in received:
        received += (part := sock.recv(65536))
        assert part, received
    return received


@contextlib.contextmanager
def serve_fake(
    loop: FakeLoop | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    is_jserve: bool = True,
    port: int = 0,
    **config: Any,
) -> Iterator[Served]:
    """A server in a thread, on a free port; foreign unless `is_jserve`."""
    loop = loop or FakeLoop()
    server_config = ServerConfig(**config)
    app = build_app(loop, tokenizer or load_tokenizer(None), server_config)
    server = make_server(app if is_jserve else _without_jserve(app), server_config)
    # Only a socket that names its protocol gets TCP_NODELAY from asyncio.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True
    )
    thread.start()
    try:
        yield Served(loop, listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
        assert not thread.is_alive()


def _without_jserve(app: Any) -> Any:
    """An app without the routes under /jserve."""

    async def foreign(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path", "").startswith("/jserve"):
            scope = scope | {"path": "/nowhere", "raw_path": b"/nowhere"}
        await app(scope, receive, send)

    return foreign


def main(arguments: list[str]) -> int:
    """Serves until SIGTERM, or fails as the arguments say."""
    options = dict(one.removeprefix("--").partition("=")[::2] for one in arguments)
    exit_status = int(options.get("exit_status", 0))
    dies, fails = "dies" in options, "fails" in options
    if dies or "warmup_only" in options:
        print("no such model" if dies else "1 of 1 programs", file=sys.stderr)
        return 3 if dies else exit_status
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    if fails:
        print("out of memory", flush=True)
    loop = FakeLoop(
        config=EngineConfig(policy=options.get("policy", "sliding")),
        health=Health.FAILED if fails else Health.WARM,
    )
    loop.start_up = STARTED
    with serve_fake(loop, port=int(options.get("port", 0))):
        stop.wait()
    return exit_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
