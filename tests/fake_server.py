"""A scripted engine behind a real server, for tests of the HTTP server and its clients.

Each step emits one token of every running request whose prompt is computed: the next of
its script, which repeats. It has no model and no scheduler. A script that raises an
error fails the engine. The file is also a program, so that tests can launch it.
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
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jserve.config import EngineConfig
from jserve.engine.interface import Listener
from jserve.records.events import (
    EngineStats,
    Health,
    NotServingError,
    ProgramStart,
    QueueFullError,
    StartUp,
    TokenEvent,
    TokenLogprobs,
)
from jserve.server.app import build_app
from jserve.server.serving import make_server
from jserve.server_config import ServerConfig
from jserve.text.tokenizer import Tokenizer, load_tokenizer
from jserve_sched.buckets.table import BucketTable
from jserve_sched.requests.forecast import Forecast
from jserve_sched.requests.limits import RequestLimits
from jserve_sched.requests.request import FinishReason, Request
from jserve_sched.steps.record import StepRecord

Script = Callable[[Request], Sequence[int]]
MANY = 10**9
COMMAND = (sys.executable, str(pathlib.Path(__file__)))
STARTED = StartUp(
    ready_s=0.5,
    warm_s=2.0,
    covering_s=0.25,
    programs=tuple(
        ProgramStart(f"B8xNB{num_blocks}", 0.125, 0.375, 1000, "compiled")
        for num_blocks in (0, 4)
    ),
)


class FakeLoop:
    """A `ServingEngine` of scripted requests."""

    def __init__(
        self,
        script: Script | str = "hello ",
        *,
        step_s: float = 0.001,
        prompt_token_s: float = 0.0,
        chunk_tokens: int = MANY,
        num_slots: int = MANY,
        config: EngineConfig | None = None,
        health: Health = Health.WARM,
        logprobs: Callable[[int], TokenLogprobs] | None = None,
    ):
        self.script: Script = (
            (lambda request: list(script.encode()))
            if isinstance(script, str)
            else script
        )
        self.logprobs = logprobs
        self.step_s = step_s
        self.prompt_token_s = prompt_token_s
        self.chunk_tokens = chunk_tokens  # of prompts, in one step
        self.num_slots = num_slots
        self.config = (config or EngineConfig()).for_device("cpu")
        self.vocab_size = 320
        self.limits = RequestLimits(max_model_len=512, num_kv_tokens=4096)
        self.model_name = "fake"
        self.seen: list[Request] = []
        self.forecasts = Forecast(
            ttft_s=(5.0, 10.0),
            worst_gap_s=(0.25, 0.5),
            ttlt_s=(6.0, 12.5),
            chances={"ttft_s": 0.75, "tbt_s": 0.5},
            attainable_in_s=1.5,
            made_s=0.0,
            points=(5.0, 0.25, 6.0),
        )
        self.cancelled: list[str] = []
        self.running = threading.Event()  # cleared: no step is made
        self.running.set()
        self.fail_with: str | None = None
        self.refusals: Iterator[Exception | None] = iter(())
        self.start_up = StartUp()
        self.num_forgotten = 0  # of the oldest steps
        self.health = health
        self._lock = threading.Condition()
        self._live: dict[str, Request] = {}
        self._prompt_left: dict[str, int] = {}
        self._steps: list[StepRecord] = []
        self._publish: Listener = len
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def set_listener(self, publish: Listener) -> None:
        self._publish = publish

    def start(self) -> None:
        self._thread.start()

    def wait_until(self, health: Health, timeout_s: float) -> bool:
        order = (Health.STARTING, Health.READY, Health.WARM)
        return self.health in order[order.index(health) :]

    def check_open(self) -> None:
        if self.health not in (Health.READY, Health.WARM):
            raise NotServingError(f"the engine is {self.health.value}")
        if len(self._live) >= self.config.max_queued_requests:
            raise QueueFullError("too many requests wait", 2.5)

    def forecast(self, request: Request) -> Forecast:
        if self.health not in (Health.READY, Health.WARM):
            raise NotServingError(f"the engine is {self.health.value}")
        return self.forecasts

    def submit(self, request: Request) -> None:
        request.forecast = self.forecasts
        self.limits.check(request.num_prompt_tokens, request.max_tokens)
        with self._lock:
            self.check_open()
            if (refusal := next(self.refusals, None)) is not None:
                raise refusal
            self.seen.append(request)
            self._prompt_left[request.request_id] = request.num_prompt_tokens
            self._live[request.request_id] = request
            self._lock.notify_all()

    def cancel(self, request_id: str) -> None:
        with self._lock:
            if self._live.pop(request_id, None) is not None:
                self.cancelled.append(request_id)
            self._lock.notify_all()

    def refuse(self, reason: FinishReason, most: int = MANY) -> None:
        """Ends what waits, as a scheduler's admission does."""
        now_s, ended = time.monotonic(), list(self._live)[:most]
        for one in ended:
            del self._live[one]
        self._publish(
            [TokenEvent(one, None, now_s, reason, retry_after_s=1.5) for one in ended]
        )

    def num_live(self) -> int:
        with self._lock:
            return len(self._live)

    def wait_idle(self, timeout_s: float = 5.0) -> bool:
        with self._lock:
            return self._lock.wait_for(lambda: not self._live, timeout_s)

    def wait_live(self, count: int, timeout_s: float = 5.0) -> bool:
        with self._lock:
            return self._lock.wait_for(lambda: len(self._live) >= count, timeout_s)

    def stats(self) -> EngineStats:
        return EngineStats(
            health=self.health,
            policy=self.config.policy,
            block_tokens=32,
            buckets=BucketTable((8,), (0, 4)),
            num_running=self.num_live(),
            num_waiting=0,
            num_pages=32,
            num_free_pages=24,
            num_programs=4,
            num_programs_total=4,
            num_compiles_after_warmup=0,
            num_preemptions=1,
            num_steps=len(self._steps),
            prompt_tokens=sum(one.num_prompt_tokens for one in self.seen),
            prefix_hit_tokens=3,
            generated_tokens=sum(len(one.output_tokens) for one in self.seen),
            compile_s=0.5,
            start_up=self.start_up,
        )

    def steps(self, since: int = 0) -> list[StepRecord]:
        return self._steps[max(since, self.num_forgotten) :]

    def drain(self, timeout_s: float) -> bool:
        self.health = Health.DRAINING
        is_done = self.wait_idle(timeout_s)
        with self._lock:
            left = list(self._live)
            self._live.clear()
        self._publish(
            [
                TokenEvent(one, None, time.monotonic(), FinishReason.CANCELLED)
                for one in left
            ]
        )
        return is_done

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        self.running.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            with self._lock:
                left = list(self._live)
                self._live.clear()
                self.health = Health.FAILED
            now_s, reason = time.monotonic(), FinishReason.CANCELLED
            self._publish(
                [TokenEvent(one, None, now_s, reason, error=str(error)) for one in left]
            )

    def _serve(self) -> None:
        while True:
            self.running.wait()
            with self._lock:
                self._lock.wait_for(lambda: self._live or self._stopping)
                if self._stopping:
                    return
                running = list(self._live.values())[: self.num_slots]
                prefill_tokens = self._prefill(running)
            time.sleep(self.step_s + self.prompt_token_s * prefill_tokens)
            with self._lock:
                events = [
                    self._next(one)
                    for one in running
                    if one.request_id in self._live
                    and not self._prompt_left[one.request_id]
                ]
                for event in events:
                    if event.finish_reason is not None:
                        del self._live[event.request_id]
                self._lock.notify_all()
            self._record(len(events))
            self._publish(events)

    def _prefill(self, running: Sequence[Request]) -> int:
        """Computes the next chunk of prompts; returns its tokens."""
        room = self.chunk_tokens
        for one in running:
            one.first_scheduled_s = one.first_scheduled_s or time.monotonic()
            taken = min(room, self._prompt_left[one.request_id])
            self._prompt_left[one.request_id] -= taken
            room -= taken
        return self.chunk_tokens - room

    def _next(self, request: Request) -> TokenEvent:
        now_s = time.monotonic()
        if self.fail_with is not None:
            return TokenEvent(
                request.request_id,
                None,
                now_s,
                FinishReason.CANCELLED,
                error=self.fail_with,
            )
        script = self.script(request)
        index = len(request.output_tokens)
        token = script[index % len(script)]
        request.output_tokens.append(token)
        reason = None
        if token in request.stop_token_ids and index + 1 > request.min_tokens:
            reason = FinishReason.STOP
        elif index + 1 == request.max_tokens:
            reason = FinishReason.LENGTH
        event = TokenEvent(request.request_id, token, now_s, reason, 2)
        if self.logprobs and request.sampling.num_logprobs is not None:
            event = event._replace(logprobs=self.logprobs(token))
        return event

    def _record(self, used_rows: int) -> None:
        self._steps.append(
            StepRecord(
                step_id=len(self._steps),
                end_s=time.monotonic(),
                num_rows=8,
                num_blocks=1,
                used_rows=used_rows,
                used_blocks=1,
                prefill_tokens=10,
                decode_pages=1,
                block_pages=1,
                ended_by="no_work",
                leaves_work=False,
                predicted_s=0.002,
                bucket_s=0.002,
                used_s=0.001,
                duration_s=0.001,
                plan_s=0.0001,
                launch_s=0.0001,
                wait_s=0.001,
                host_s=0.0005,
            )
        )


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
