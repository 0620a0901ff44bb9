"""A stranger's view: the real server in its own process, the official client."""

import contextlib
import http.client
import json
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator

import numpy as np
import openai
import pytest

BUCKETS = pathlib.Path(__file__).parent.parent / "four_programs.json"
CLASSES = '[{"name": "chat", "ttft_s": 5, "tbt_s": 1, "guard": true}]'


class Server:
    def __init__(self, folder: pathlib.Path, cache: pathlib.Path):
        classes = folder / "classes.json"
        classes.write_text(CLASSES)
        command = [
            *(sys.executable, "-m", "jserve.cli", "--port=0", f"--buckets={BUCKETS}"),
            *("--max_num_seqs=16", "--max_num_batched_tokens=144"),
            *("--max_model_len=2048", "--kv_cache_bytes=67108864"),
            *(f"--compile_cache_dir={cache}", f"--service_classes={classes}"),
        ]
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, f"no URL in {line!r}: {self.log.read_text()}"
        self.url = found[0]
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none")

    def wait_until_warm(self, timeout_s: float = 120.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError):
                if json.loads(self.get("/health"))["warm"]:
                    return
            time.sleep(0.1)
        raise AssertionError(f"never warm: {self.log.read_text()}")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return str(answer.read().decode())

    def post(self, body: bytes) -> tuple[int, dict[str, dict[str, object]]]:
        address = urllib.parse.urlsplit(self.url)
        assert address.hostname is not None
        with contextlib.closing(
            http.client.HTTPConnection(address.hostname, address.port)
        ) as connection:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def info(self) -> dict[str, object]:
        stats: dict[str, object] = json.loads(self.get("/jserve/info"))["stats"]
        return stats

    def stop(self) -> int:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        with self.process:
            return self.process.wait(60)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The second server finds here what the first one compiled."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def server(
    cache: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), cache)
    server.wait_until_warm()
    yield server
    assert server.stop() == 0, server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def test_the_official_client_streams_a_chat(server: Server) -> None:
    stream = server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Good morning"}],
        max_tokens=20,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True, "slo": {"ttft_ms": 4000, "tpot_ms": 500}},
    )
    chunks = list(stream)
    usage = chunks[-1].usage
    assert usage is not None and usage.completion_tokens == 20
    with_choices = [chunk for chunk in chunks if chunk.choices]
    assert len(with_choices) == 20, "one event for each token"
    assert with_choices[-1].choices[0].finish_reason == "length"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in with_choices)
    assert text


def test_the_official_client_streams_a_completion(server: Server) -> None:
    arguments = {
        "model": "tiny",
        "prompt": "Once upon a time",
        "max_tokens": 24,
        "temperature": 0.9,
        "top_p": 0.9,
        "seed": 7,
    }
    whole = server.client.completions.create(**arguments)
    parts = [
        chunk.choices[0].text
        for chunk in server.client.completions.create(**arguments, stream=True)
        if chunk.choices
    ]
    assert "".join(parts) == whole.choices[0].text, "a seed makes a draw repeatable"


def test_mixed_requests_over_http_compile_nothing(server: Server) -> None:
    rng = np.random.default_rng(3)
    failures: list[str] = []

    def client(share: int) -> None:
        for index in range(15):
            prompt = rng_tokens[share][index]
            answer = server.client.completions.create(
                model="tiny",
                prompt=prompt,
                max_tokens=5 + index,
                temperature=float(index % 2),
                extra_body={"ignore_eos": True},
            )
            usage = answer.usage
            if usage is None or usage.completion_tokens != 5 + index:
                failures.append(f"{share}/{index}: {usage}")
            if usage is None or usage.prompt_tokens != len(prompt):
                failures.append(f"{share}/{index}: {usage}")

    rng_tokens = [
        [rng.integers(0, 256, rng.integers(1, 900)).tolist() for _ in range(15)]
        for _ in range(8)
    ]
    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    stats = server.info()
    assert stats["num_compiles_after_warmup"] == 0
    assert stats["num_free_pages"] == stats["num_pages"]


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"{not json", 400, "JSON"),
        (b'{"model": "tiny", "prompt": "\xff\xfe"}', 400, "UTF-8"),
        (b'{"model": "gpt-9", "prompt": "a"}', 404, "gpt-9"),
        (b'{"model": "tiny", "prompt": "a", "max_tokens": -3}', 400, "-3"),
        (b'{"model": "tiny", "prompt": "a", "max_tokens": 99999}', 400, "2048"),
        (b'{"model": "tiny", "prompt": "a", "slo": {"ttft_ms": -1}}', 400, "-1"),
        (b'{"model": "tiny", "prompt": "a", "tools": [{}]}', 400, "tools"),
        (
            b'{"model": "tiny", "prompt": "' + b"a" * 3000 + b'"}',
            400,
            "3000",
        ),
        (b'{"model": "tiny", "prompt": "' + b"a" * 10_000_000 + b'"}', 413, "1048576"),
    ],
    ids=[
        *("json", "utf8", "model", "negative", "huge", "slo", "tools", "long", "body"),
    ],
)
def test_bad_input_is_named_and_the_server_goes_on(
    server: Server, body: bytes, status: int, named: str
) -> None:
    got, answer = server.post(body)
    assert got == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert named in str(answer["error"]["message"])
    good = b'{"model": "tiny", "prompt": "a", "max_tokens": 2, "ignore_eos": true}'
    assert server.post(good)[0] == 200


def test_sigterm_lets_a_running_stream_finish(
    tmp_path: pathlib.Path, cache: pathlib.Path
) -> None:
    server = Server(tmp_path, cache)
    server.wait_until_warm()
    stream = server.client.completions.create(
        model="tiny",
        prompt=[1, 2, 3],
        max_tokens=800,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    events = iter(stream)
    next(events)
    server.process.send_signal(signal.SIGTERM)
    num_more = sum(1 for chunk in events if chunk.choices)
    assert num_more == 799
    with server.process:
        assert server.process.wait(60) == 0, server.log.read_text()
    assert "Traceback" not in server.log.read_text()
    server.client.close()
