"""A real server with the model `toy`, whose answers are known, and its clients."""

import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from jserve_models.toy import toy_next_token
from tests import ROOT
from tests.programs import SOURCES

STEP_TIMEOUT_S = 1.5
FLAGS = ["--model=toy", "--port=0", "--bucket_strategy=pow2", "--max_num_seqs=8"]
FLAGS += ["--max_num_batched_tokens=256", f"--step_timeout_s={STEP_TIMEOUT_S}"]
FLAGS += ["--warm_up_timing_s=0.5", "--drain_timeout_s=2", "--seed=0"]
NUM_TOKENS = 1500
PROMPTS = [list(range(first, first + 40)) for first in range(1, 9)]


def toy_output(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(toy_next_token(tokens))
    return tokens[len(prompt) :]


class Server:
    """A server process with a fault to come."""

    def __init__(self, folder: pathlib.Path, point: str = "plan", *flags: str):
        self.fault = folder / f"fault {point}"
        self.log = folder / "log"
        cache = f"--compile_cache_dir={folder.parent / 'programs'}"
        module = ["-m", "tests.trust.broken_server", point, str(self.fault)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *module, *FLAGS, cache, *flags],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": SOURCES},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "http://127.0.0.1:" in line, self.log.read_text()
        self.port = int(line.split("127.0.0.1:")[1].split()[0])

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(client):
            client.request(method, path, json.dumps(body).encode() if body else None)
            with client.getresponse() as response:
                return response.status, response.read()

    @contextlib.contextmanager
    def stream(self, prompt: list[int]) -> Iterator[Iterator[bytes]]:
        """Yields the lines of a stream, which is cut at the end."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        fields = {"prompt": prompt, "max_tokens": NUM_TOKENS, "stream": True}
        with contextlib.closing(client):
            client.request("POST", "/v1/completions", json.dumps(fields))
            with client.getresponse() as response:
                yield iter(response)

    def health(self) -> Mapping[str, Any]:
        with contextlib.suppress(OSError):
            return dict(json.loads(self.ask("GET", "/health")[1]))
        return {}

    def wait_until_warm(self) -> None:
        while not self.health().get("warm"):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def metric(self, name: str) -> float:
        lines = self.ask("GET", "/metrics")[1].decode().splitlines()
        return sum(float(one.split()[-1]) for one in lines if one.startswith(name))


@contextlib.contextmanager
def serving(*arguments: Any) -> Iterator[Server]:
    server = Server(*arguments)
    try:
        server.wait_until_warm()
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


@dataclasses.dataclass
class Client:
    """One request, streamed or not, and what came of it."""

    server: Server
    prompt: list[int]
    is_streamed: bool
    max_tokens: int = NUM_TOKENS
    tokens: list[int] = dataclasses.field(default_factory=list)
    status: int = 0
    error: Any = None
    end_s: float = 0.0

    def start(self) -> "Client":
        """Asks in a thread, which `wait` waits for."""
        self._thread = threading.Thread(target=self.run)
        self._thread.start()
        return self

    def wait(self, timeout_s: float = 30.0) -> None:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "a client still waits"

    def run(self) -> None:
        try:
            self._ask()
        except (OSError, http.client.HTTPException) as error:
            self.error = repr(error)  # not in the API's form
        self.end_s = time.monotonic()

    def _ask(self) -> None:
        fields = {"prompt": self.prompt, "max_tokens": self.max_tokens}
        fields |= {"stream": self.is_streamed, "temperature": 0, "ignore_eos": True}
        body = json.dumps(fields | {"return_token_ids": True})
        client = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        with contextlib.closing(client):
            client.request("POST", "/v1/completions", body)
            with client.getresponse() as response:
                self.status = response.status
                if not self.is_streamed or self.status != 200:
                    self._take(json.loads(response.read()))
                    return
                for line in response:
                    if line.startswith(b"data: {"):
                        self._take(json.loads(line[6:]))

    def _take(self, answer: Mapping[str, Any]) -> None:
        self.error = answer.get("error", self.error)
        for choice in answer.get("choices", ()):
            self.tokens += choice["token_ids"]

    @property
    def is_right(self) -> bool:
        """Whether it got all tokens of its answer, or a part of them and an error."""
        right = toy_output(self.prompt, len(self.tokens))
        is_whole = len(self.tokens) == self.max_tokens and self.error is None
        has_error = isinstance(self.error, dict) and bool(self.error["message"])
        return self.tokens == right and (is_whole or has_error)


def all_at_work(server: Server, max_tokens: int = NUM_TOKENS) -> list[Client]:
    """Starts a client for each prompt; returns when all are decoded."""
    clients = [
        Client(server, prompt, index % 2 == 0, max_tokens).start()
        for index, prompt in enumerate(PROMPTS)
    ]
    while server.metric("vllm:num_requests_running") < len(clients):
        assert server.process.poll() is None
        time.sleep(0.01)
    return clients
