"""What hostile and merely slow clients do to others: nothing (`make trust`).

Every case of the table is played by a client whose size is bounded, against a server in
a process of its own, while one stream runs and health is asked for. The engine is
scripted, so that the figures are those of the server.
"""

import contextlib
import gzip
import http.client
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tests import ROOT, TESTS

pytestmark = pytest.mark.trust

STEP_S = 0.02
LATER_S = 0.1  # that a token of the stream may be later
HEALTH_S = 0.25
REFUSED_S = 1.0  # after the last byte of the request
CONTEXT = 2**17
SERVER = f"""
import pathlib, sys
from tests.fake_loop import FakeLoop
from jserve.config import EngineConfig
from jserve.server_config import ServerConfig
from jserve.server import app, serving
from jserve.text.tokenizer import load_tokenizer
from jserve_sched.requests.limits import RequestLimits
loop = FakeLoop(
    step_s={STEP_S}, num_slots=8, config=EngineConfig(max_queued_requests=24)
)
loop.limits = RequestLimits(max_model_len={CONTEXT}, num_kv_tokens=10**6)
config = ServerConfig(
    port=0, max_connections=100, head_timeout_s=2, body_timeout_s=3, drain_timeout_s=5
)
application = app.build_app(loop, load_tokenizer(pathlib.Path(sys.argv[1])), config)
with serving.bind(config) as listener:
    print(listener.getsockname()[1], flush=True)
    sys.exit(serving.serve(application, loop, config, listener))
"""
TEMPLATE = """
{%- macro deep(n) %}{{ deep(n + 1) }}{% endmacro -%}
{%- set word = messages[0].content -%}
{%- if word == 'hang' %}
{%- for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}
{%- elif word == 'range' %}{% for i in range(10**9) %}{% endfor %}
{%- elif word == 'deep' %}{{ deep(0) }}
{%- elif word == 'memory' %}{{ word * 10**10 }}
{%- else %}<|user|>{{ word }}{% endif %}"""
HEAD = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n"


class Server:
    """A server process, with its template in a folder."""

    def __init__(self, folder: pathlib.Path):
        shutil.copytree(ROOT / "jserve/text/byte_tokenizer", folder)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(folder)],
            cwd=TESTS,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        while not self.is_ready():
            time.sleep(0.05)

    def is_ready(self) -> bool:
        try:
            return self.ask("GET", "/health")[0] == 200
        except OSError:
            return False

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(client):
            client.request(method, path, body)
            with client.getresponse() as response:
                return response.status, response.read()

    def memory_bytes(self) -> tuple[int, int]:
        """Memory of the server, with bodies that it holds in files, and of workers."""
        pid = self.process.pid
        tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
        workers = " ".join(one.read_text() for one in tasks).split()
        files = 0
        for file in pathlib.Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                files += file.stat().st_size if "memfd" in str(file.readlink()) else 0
        return resident_bytes(str(pid)) + files, sum(map(resident_bytes, workers))


def resident_bytes(pid: str) -> int:
    with contextlib.suppress(OSError):
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        lines = [one for one in status.splitlines() if one.startswith("VmRSS")]
        return int(lines[0].split()[1]) * 1024 if lines else 0
    return 0


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[Server]:
    server = Server(tmp_path / "folder")
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


class Witness:
    """One running stream and one prober of health, in threads."""

    def __init__(self, server: Server):
        self._server = server
        self._is_over = threading.Event()
        self.gaps_s: list[float] = []
        self.health_s: list[float] = []
        self.most_bytes = [0, 0]  # of the server, of its workers
        self._threads = [
            threading.Thread(target=one)
            for one in (self._stream, self._probe, self._weigh)
        ]

    def _stream(self) -> None:
        fields = {"prompt": "hi", "stream": True, "max_tokens": 100_000}
        body = json.dumps(fields).encode()
        with self._server.connect() as sock:
            sock.sendall(HEAD % (b"/v1/completions", len(body), b"") + body)
            while b"finish_reason" not in sock.recv(2**16):
                pass
            last_s = time.monotonic()
            while not self._is_over.is_set():
                assert sock.recv(2**16)
                now_s = time.monotonic()
                self.gaps_s.append(now_s - last_s)
                last_s = now_s

    def _probe(self) -> None:
        while not self._is_over.wait(0.05):
            start_s = time.monotonic()
            assert self._server.ask("GET", "/health")[0] == 200
            self.health_s.append(time.monotonic() - start_s)

    def _weigh(self) -> None:
        while not self._is_over.wait(0.01):
            sizes = self._server.memory_bytes()
            self.most_bytes = [*map(max, self.most_bytes, sizes)]

    def __enter__(self) -> "Witness":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()


def chat(content: object, num_messages: int = 1) -> bytes:
    message = {"role": "user", "content": content}
    return json.dumps({"messages": [message] * num_messages}).encode()


CHAT = b"/v1/chat/completions"
COMPLETION = b"/v1/completions"
PART = {"type": "text", "text": ""}
UNKNOWN = ", ".join(f'"k{i}": 1' for i in range(400_000))
BODIES: dict[str, tuple[bytes, bytes, bytes]] = {
    "wrong messages": (CHAT, chat(7, 150_000), b""),
    "ids": (COMPLETION, b'{"prompt": [%s1]}' % (b"1," * 2_000_000), b""),
    "parts": (CHAT, chat([PART] * 150_000), b""),
    "unknown fields": (COMPLETION, b'{"prompt": "a", %s}' % UNKNOWN.encode(), b""),
    "a long text": (COMPLETION, b'{"prompt": "%s"}' % (b"a b " * 1_500_000), b""),
    "a long chat": (CHAT, chat("a b " * 1_500_000), b""),
    "depth": (COMPLETION, b'{"prompt": "a", "x": %s' % (b"[" * 10**6), b""),
    "prompts": (COMPLETION, b'{"prompt": [%s"a"]}' % (b'"a",' * 10**6), b""),
    "stop strings": (
        COMPLETION,
        b'{"prompt": "a", "stop": [%s"a"]}' % (b'"a",' * 10**6),
        b"",
    ),
    "a tool": (COMPLETION, b'{"prompt": "a", "tools": [%s1]}' % (b"1," * 10**6), b""),
    "gzip": (
        COMPLETION,
        gzip.compress(b" " * 2**28),
        b"Content-Encoding: gzip\r\n",
    ),
    **{f"template: {one}": (CHAT, chat(one), b"") for one in TEMPLATE.split("'")[1::2]},
}


def refused(server: Server, path: bytes, body: bytes, headers: bytes) -> float:
    """Sends a request; returns seconds from its last byte to its refusal."""
    with server.connect() as sock:
        sock.sendall(HEAD % (path, len(body), headers) + body)
        start_s = time.monotonic()
        status = int(sock.recv(2**16).split(b" ", 2)[1])
        assert 400 <= status < 500, status
        return time.monotonic() - start_s


def endless_head(server: Server) -> None:
    with server.connect() as sock, contextlib.suppress(ConnectionError):
        sock.sendall(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(200):
            sock.sendall(b"a" * 2**20)


def idle(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(server.connect())
        time.sleep(1)


def slow_bodies(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(50)]
        for part in range(8):
            for sock in socks:
                with contextlib.suppress(OSError):
                    head = HEAD % (COMPLETION, 6 * 2**20, b"") if not part else b""
                    sock.sendall(head + b" " * 2**16)
            time.sleep(0.5)


def test_the_whole_table_beside_one_stream(server: Server) -> None:
    with Witness(server) as alone:
        time.sleep(3)
    before_bytes, late = alone.most_bytes[0], []
    largest = max(len(body) for _, body, _ in BODIES.values())
    with Witness(server) as beside:
        for name, (path, body, headers) in BODIES.items():
            took_s = refused(server, path, body, headers)
            print(f"{name}: {took_s:.3f} s", flush=True)
            if took_s > REFUSED_S:
                late.append((name, took_s))
        grown = (beside.most_bytes[0] - before_bytes) / largest
        for play in (endless_head, idle, slow_bodies):
            play(server)
    print(f"memory: {grown:.2f} times the largest body, and in workers", end=" ")
    print(f"{beside.most_bytes[1] / 2**20:.0f} MiB")
    print(f"gaps: {max(alone.gaps_s):.3f} s alone, {max(beside.gaps_s):.3f} s beside")
    print(f"health: {max(beside.health_s):.3f} s of {len(beside.health_s)}")
    assert late == []
    assert max(beside.gaps_s) <= max(alone.gaps_s) + LATER_S
    assert max(beside.health_s) <= HEALTH_S
    assert grown <= 2


def test_signals_and_health_do_not_wait_for_chats_that_hang(server: Server) -> None:
    body = chat("hang")
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            sock = stack.enter_context(server.connect())
            sock.sendall(HEAD % (CHAT, len(body), b"") + body)
        start_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        while server.is_ready():
            time.sleep(0.01)
        assert time.monotonic() - start_s < 1
        assert server.process.wait(timeout=15) == 0


CLIENT = """
import asyncio, json, sys, time
import aiohttp
async def one(session, url, results):
    start_s = time.monotonic()
    fields = {"prompt": "hi", "max_tokens": 20}
    try:
        async with session.post(url, json=fields) as response:
            await response.read()
            status = response.status
    except aiohttp.ClientError as error:
        status = repr(error)
    results.append((status, time.monotonic() - start_s))
async def main(port, rate, duration_s):
    results, tasks = [], set()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        start_s = time.monotonic()
        for index in range(int(rate * duration_s)):
            await asyncio.sleep(start_s + index / rate - time.monotonic())
            url = f"http://127.0.0.1:{port}/v1/completions"
            tasks.add(asyncio.create_task(one(session, url, results)))
        await asyncio.gather(*tasks)
    print(json.dumps(results))
asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
"""


def test_ten_times_the_load_is_refused_at_once(server: Server) -> None:
    rate = 8 / (20 * STEP_S)  # that the eight slots finish
    answered = []  # requests a second
    for factor, duration_s in ((1, 10), (10, 30)):
        arguments = [str(server.port), str(factor * rate), str(duration_s)]
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, *arguments],
            stdout=subprocess.PIPE,
            check=True,
        )
        results = json.loads(done.stdout)
        assert {one[0] for one in results} <= {200, 429}
        answered.append(sum(status == 200 for status, _ in results) / duration_s)
        refusals_s = sorted(one for status, one in results if status == 429)
    p99_s = refusals_s[int(0.99 * len(refusals_s))]
    print(f"answered: {answered}; p99 of {len(refusals_s)} refusals: {p99_s:.3f} s")
    assert p99_s < 0.2
    assert answered[1] >= 0.9 * answered[0]
    start_s = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=15) == 0
    assert time.monotonic() - start_s < 10
