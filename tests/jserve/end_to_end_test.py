"""A stranger's view: the real server in its own process, the official client."""

import contextlib
import json
import math
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests import TESTS
from tests.engine_harness import TOY_KV_BYTES, share_programs

BUCKETS = TESTS / "four_programs.json"
CLASSES = """[{"name": "chat", "ttft_s": 5, "tbt_s": 1, "guard": true},
  {"name": "refused", "ttft_s": 1e-6, "admission": "refuse"},
  {"name": "degraded", "ttft_s": 1e-6, "admission": "degrade"},
  {"name": "queued", "ttft_s": 1e-6, "max_queue_wait_s": 1e-6}]"""


class Server:
    def __init__(self, folder: pathlib.Path, cache: pathlib.Path):
        classes = folder / "classes.json"
        classes.write_text(CLASSES)
        command = [
            *(sys.executable, "-m", "jserve", "--model=toy", "--port=0"),
            f"--buckets={BUCKETS}",
            *("--max_num_seqs=16", "--max_num_batched_tokens=144"),
            *("--max_model_len=2048", f"--kv_cache_bytes={TOY_KV_BYTES}"),
            *(f"--compile_cache_dir={cache}", f"--service_classes={classes}"),
            f"--step_log={folder / 'steps.jsonl'}",
        ]
        self.log = folder / "server.log"
        self.step_log = folder / "steps.jsonl"
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

    def wait_until_warm(self, timeout_s: float = 200.0) -> None:
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


@pytest.fixture(scope="module")
def server(
    shared_programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server for all tests; the last one ends it."""
    folder = tmp_path_factory.mktemp("server")
    share_programs(folder / "cache", shared_programs)
    server = Server(folder, folder / "cache")
    server.wait_until_warm()
    yield server
    server.client.close()
    if server.process.poll() is None:
        server.process.kill()
        with server.process:
            server.process.wait(60)


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_attained_is_refused_or_degraded(
    server: Server, stream: bool
) -> None:
    client = server.client.with_options(max_retries=0).completions.with_raw_response
    asked: dict[str, Any] = {"model": "toy", "prompt": "a", "max_tokens": 2}
    for tier, status, code in (
        ("refused", 429, "unattainable"),
        ("queued", 503, "queue_wait"),
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            client.create(**asked, stream=stream, extra_body={"service_tier": tier})
        error: Any = caught.value.body
        assert (caught.value.status_code, error["code"]) == (status, code)
        assert caught.value.response.headers["x-should-retry"] == "false"
        retry_after_s = int(caught.value.response.headers["retry-after"])
        assert retry_after_s == max(math.ceil(error["retry_after_s"]), 1)
    answer = client.create(
        **asked, stream=stream, extra_body={"service_tier": "degraded"}
    )
    assert answer.headers["x-jserve-admission"] == "degraded"
    answer.http_response.read()
    text = server.get("/metrics")
    for reason in ("unattainable", "queue_wait", "degraded"):
        assert f'reason="{reason}",service_class="' in text


def test_the_official_client_streams_a_chat(server: Server) -> None:
    stream = server.client.chat.completions.create(
        model="toy",
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
    assert "".join(chunk.choices[0].delta.content or "" for chunk in with_choices)
    stats = json.loads(server.get("/jserve/info"))["stats"]
    assert stats["num_compiles_after_warmup"] == 0


def test_the_official_client_reads_logprobs_and_biases_change_answers(
    server: Server,
) -> None:
    asked: dict[str, Any] = {"model": "toy", "max_tokens": 3, "temperature": 0}
    chat = server.client.chat.completions.create(
        **asked,
        messages=[{"role": "user", "content": "Hi"}],
        logprobs=True,
        top_logprobs=2,
        logit_bias={"65": 60},
    )
    assert chat.choices[0].message.content == "AAA"
    found = chat.choices[0].logprobs
    assert found is not None and found.content is not None
    for one in found.content:
        assert (one.token, one.bytes) == ("A", [65])
        best = one.top_logprobs[0]
        assert len(one.top_logprobs) == 2 and best.logprob > one.logprob
    completion = server.client.completions.create(
        **asked, prompt="Hi", logprobs=1, extra_body={"allowed_token_ids": [66]}
    )
    told = completion.choices[0].logprobs
    assert completion.choices[0].text == "BBB"
    assert told is not None and told.tokens == ["B"] * 3
    assert told.text_offset == [0, 1, 2]


class Light(pydantic.BaseModel):
    colour: Literal["red", "green"]
    level: int = pydantic.Field(ge=0, le=9)


def test_the_official_client_parses_an_answer_into_its_model(server: Server) -> None:
    answer = server.client.chat.completions.parse(
        model="toy",
        messages=[{"role": "user", "content": "Hi"}],
        response_format=Light,
        max_tokens=200,
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Light)
    stream = server.client.completions.create(
        model="toy",
        prompt="Hi",
        stream=True,
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
    )
    assert "".join(one.choices[0].text for one in stream) in ("yes", "no")
    stats = json.loads(server.get("/jserve/info"))["stats"]
    assert stats["num_compiles_after_warmup"] == 0


def test_the_official_client_is_given_a_tool_call(server: Server) -> None:
    tool = openai.pydantic_function_tool(Light)
    stream = server.client.chat.completions.create(
        model="toy",
        messages=[{"role": "user", "content": "Hi"}],
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        stream=True,
    )
    name, arguments, reasons = "", "", set[str | None]()
    for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.index == 0 and call.function is not None
            name += call.function.name or ""
            arguments += call.function.arguments or ""
        reasons.add(chunk.choices[0].finish_reason)
    assert name == "Light" and Light.model_validate_json(arguments)
    assert reasons == {None, "tool_calls"}


def test_errors_become_the_clients_own(server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        server.client.completions.create(model="other", prompt="hi")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        server.client.completions.create(model="toy", prompt="hi", max_tokens=10**6)
    assert wrong.value.param == "max_tokens"
    assert [one.id for one in server.client.models.list()] == ["toy"]


def test_sigterm_lets_a_running_stream_finish(server: Server) -> None:
    stream = server.client.completions.create(
        model="toy",
        prompt=[1, 2, 3],
        max_tokens=400,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    events = iter(stream)
    next(events)
    server.process.send_signal(signal.SIGTERM)
    num_more = sum(1 for chunk in events if chunk.choices)
    assert num_more == 399
    with server.process:
        assert server.process.wait(60) == 0, server.log.read_text()
    num_steps = sum(row[0] == "[" for row in server.step_log.read_text().splitlines())
    assert num_steps >= 400  # a step a token, and those of the tests before
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "loading model toy" in log and "loading them: 10 of 10 (" in log
