"""Two processes that share a model answer as one, and end together."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from jserve.build import build_loop
from jserve.records.events import Health
from jserve.text.tokenizer import load_tokenizer
from jserve_sched.requests.request import Request
from tests.engine_harness import small_config, start

pytestmark = [pytest.mark.parallel, pytest.mark.timeout(1800)]
END_S = 30.0  # in which all must have ended
FAILED = 70
NUM_TOKENS = 150
PAGE_BYTES = 512 * 2**10  # of tiny, over all devices
NUM_PAGES = 5  # too few for two requests
BUCKETS = '{"row_edges": [8], "block_edges": [0, 4], "block_tokens": 32}'
SIZES = {"max_num_seqs": 8, "max_num_batched_tokens": 136, "max_model_len": 512}


def prompts() -> list[list[int]]:
    stem = np.random.default_rng(0).integers(0, 256, 300).tolist()
    return [stem[:length] for length in (250, 230, 140, 120, 100, 30)]


def write_buckets(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "buckets.json"
    path.write_text(BUCKETS)
    return path


class Pair:
    """A leader that serves, and its follower."""

    def __init__(self, folder: pathlib.Path):
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        common = [
            *(sys.executable, "-m", "jserve", "--model=tiny", "--port=0"),
            f"--coordinator=localhost:{port}",
            *("--num_processes=2", "--tensor_parallel=2", "--policy=fcfs"),
            f"--buckets={write_buckets(folder)}",
            *(f"--{name}={size}" for name, size in SIZES.items()),
            f"--kv_cache_bytes={NUM_PAGES * PAGE_BYTES // 2}",
            *("--compile_cache_dir=", "--warm_up_timing_s=0.1"),
        ]
        environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        self.logs = [folder / f"process_{index}.log" for index in (0, 1)]
        self.processes = []
        for index, path in enumerate(self.logs):
            with path.open("w") as log:
                command = [*common, f"--process_id={index}"]
                self.processes.append(
                    subprocess.Popen(
                        command, env=environment, stdout=log, stderr=subprocess.STDOUT
                    )
                )
        self.leader, self.follower = self.processes
        self.url = ""

    def log(self, index: int) -> str:
        return self.logs[index].read_text()

    def wait_until(self, state: str) -> None:
        deadline_s = time.monotonic() + 900.0
        while time.monotonic() < deadline_s:
            codes = [one.poll() for one in self.processes]
            assert codes == [None, None], self.log(0) + self.log(1)
            found = re.search(r"http://\S+", self.log(0))
            with contextlib.suppress(OSError):
                self.url = found[0] if found else ""
                if self.url and json.loads(self.get("/health"))[state]:
                    return
            time.sleep(0.5)
        raise AssertionError(f"never {state}: {self.log(0)}")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return str(answer.read().decode())

    def complete(self, prompt: list[int], **fields: Any) -> str:
        body = {"model": "tiny", "prompt": prompt, "ignore_eos": True, **fields}
        request = urllib.request.Request(
            f"{self.url}/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return str(answer.read().decode())

    def end(self) -> None:
        for one in self.processes:
            if one.poll() is None:
                one.kill()
            one.wait(60)


@pytest.fixture
def pair(tmp_path: pathlib.Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    try:
        yield pair
    finally:
        pair.end()


def texts_of_one(folder: pathlib.Path) -> list[str]:
    """The texts that one process with one device answers."""
    pool = {"buckets": write_buckets(folder), "kv_cache_bytes": NUM_PAGES * PAGE_BYTES}
    config = small_config(**pool, **SIZES)
    loop = build_loop(config)
    inbox = start(loop, Health.READY)
    requests = [
        Request(
            request_id=str(index),
            arrival_s=0.0,
            prompt_tokens=np.array(prompt, np.int32),
            max_tokens=NUM_TOKENS,
        )
        for index, prompt in enumerate(prompts())
    ]
    for request in requests:
        loop.submit(request)
    inbox.wait_for(*requests, timeout_s=600.0)
    loop.stop()
    decode = load_tokenizer(None).decode
    return [
        decode([token for token in inbox.tokens(one) if token is not None])
        for one in requests
    ]


@pytest.mark.usefixtures("quick_compiler")
def test_tokens_are_those_of_one_process(pair: Pair, tmp_path: pathlib.Path) -> None:
    wanted = texts_of_one(tmp_path)
    pair.wait_until("warm")
    found = [""] * len(wanted)

    def ask(index: int, prompt: list[int]) -> None:
        answer = json.loads(pair.complete(prompt, max_tokens=NUM_TOKENS, temperature=0))
        found[index] = answer["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=one) for one in enumerate(prompts())]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == wanted
    stats = json.loads(pair.get("/jserve/info"))["stats"]
    assert stats["num_preemptions"] > 0 and stats["prefix_hit_tokens"] > 0
    assert stats["num_compiles_after_warmup"] == 0
    pair.leader.send_signal(signal.SIGTERM)
    assert [one.wait(END_S) for one in pair.processes] == [0, 0]
    assert re.search(r"followed \d+ steps, 0 late compilations", pair.log(1))


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGKILL, "has ended"), (signal.SIGSTOP, "has been silent for 15 s")],
)
def test_a_lost_follower_is_named_and_all_end(
    pair: Pair, number: signal.Signals, reason: str
) -> None:
    pair.wait_until("ready")
    answers: list[str] = []
    client = threading.Thread(
        target=lambda: answers.append(
            pair.complete(prompts()[0], max_tokens=220, stream=True)
        )
    )
    client.start()
    time.sleep(0.5)
    pair.follower.send_signal(number)
    begin_s = time.monotonic()
    assert pair.leader.wait(END_S) == FAILED, pair.log(0)
    client.join(END_S)
    assert re.search(rf"process 1 on \S+ {reason}: all processes end", pair.log(0))
    assert '"error"' in answers[0] and "Gloo" not in answers[0]
    pair.follower.send_signal(signal.SIGCONT)
    left_s = begin_s + END_S - time.monotonic()
    assert pair.follower.wait(left_s) in (FAILED, -signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_without_a_leader_a_follower_ends(pair: Pair, number: signal.Signals) -> None:
    pair.wait_until("ready")
    pair.leader.send_signal(number)
    assert pair.follower.wait(END_S) == FAILED
    assert "the leader has " in pair.log(1)
