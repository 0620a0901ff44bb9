import asyncio
import dataclasses
import json

import numpy as np
import pytest

from fake_server import FakeLoop, serve_fake
from jserve.events import QueueFullError
from jserve.server.formats import DONE_EVENT, AnswerFormat, ChunkWriter
from jserve_sched.report import Failure
from jserve_sched.slo import Slo
from jserve_tools.bench_config import HttpConfig
from jserve_tools.clients import RequestFailedError
from jserve_tools.http_client import (
    EventStream,
    open_http_client,
    refusal,
    request_body,
)
from jserve_tools.workload import WorkloadRequest

REQUEST = WorkloadRequest(
    request_id="r",
    arrival_s=0.0,
    prompt=np.array([5, 6, 7], np.int32),
    max_tokens=3,
    slo=Slo(ttft_s=0.5, tbt_s=0.05),
)
TOKEN = b'data: {"choices":[{"text":"x"}]}\n\n'
DONE = b"data: [DONE]\n\n"
ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
WORD = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
END = b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n'


def usage(tokens: int) -> bytes:
    body = {"choices": [], "usage": {"completion_tokens": tokens}}
    return f"data: {json.dumps(body)}\n\n".encode()


def times(*chunks: bytes, is_chat: bool = False) -> list[float]:
    """Feeds one chunk a second, from second 1."""
    stream = EventStream(is_chat=is_chat)
    found: list[float] = []
    for second, chunk in enumerate(chunks, start=1):
        found += stream.feed(chunk, float(second))
    return found + list(stream.finish())


@pytest.mark.parametrize(
    ("chunks", "wanted"),
    [
        # A token is timed where the last byte of its event came.
        ([TOKEN + TOKEN, TOKEN[:9], TOKEN[9:] + usage(3), DONE], [1.0, 1.0, 3.0]),
        # Usage settles how many tokens there were.
        ([TOKEN, TOKEN, TOKEN, usage(2), DONE], [1.0, 2.0]),
        ([TOKEN, TOKEN, usage(4), DONE], [1.0, 2.0, 2.0, 2.0]),
        ([TOKEN, TOKEN, DONE], [1.0, 2.0]),
        # Comments and carriage returns are no tokens.
        ([b": ping\n\n", TOKEN.replace(b"\n", b"\r\n"), DONE], [2.0]),
    ],
)
def test_tokens_of_a_completion(chunks: list[bytes], wanted: list[float]) -> None:
    assert times(*chunks) == wanted


@pytest.mark.parametrize(
    ("chunks", "wanted"),
    [
        ([ROLE, WORD, WORD, END, usage(2), DONE], [2.0, 3.0]),
        # An answer without text has the token that ended it.
        ([ROLE, usage(1), DONE], [3.0]),
        ([ROLE, usage(0), DONE], []),
    ],
)
def test_tokens_of_a_chat(chunks: list[bytes], wanted: list[float]) -> None:
    assert times(*chunks, is_chat=True) == wanted


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([TOKEN], "broke off after 1 events"),
        ([b'data: {"error": {"message": "no luck"}}\n\n', DONE], "no luck"),
        ([b'data: {"choices":[{"finish_reason":"abort"}]}\n\n', DONE], "aborted"),
    ],
)
def test_streams_that_fail(chunks: list[bytes], message: str) -> None:
    with pytest.raises(RequestFailedError, match=message) as caught:
        times(*chunks)
    assert caught.value.failure is Failure.ERROR


@pytest.mark.parametrize("is_chat", [False, True])
def test_an_abort_as_the_server_writes_it_is_a_failure(is_chat: bool) -> None:
    form = AnswerFormat(is_chat=is_chat, response_id="r", created_s=1, model="m")
    writer = ChunkWriter(form, 0)
    told = writer.event('says "finish_reason": "abort"', None, [7])
    assert len(times(told, DONE_EVENT, is_chat=is_chat)) == 1
    with pytest.raises(RequestFailedError, match="aborted") as caught:
        times(told, writer.event("", "abort", []), DONE_EVENT, is_chat=is_chat)
    assert caught.value.failure is Failure.ERROR


def test_refusals_by_cause() -> None:
    long = b'{"error": {"message": "m", "code": "context_length_exceeded"}}'
    assert refusal(429, b"busy").failure is Failure.REJECTED
    assert refusal(400, long).failure is Failure.TOO_LONG
    assert refusal(400, b"{}").failure is Failure.ERROR
    assert str(refusal(500, b"<html>")) == "HTTP 500: <html>"


def body(request: WorkloadRequest = REQUEST, **config: str) -> dict:
    return json.loads(request_body(HttpConfig(**config), request, "m"))


def test_body_is_token_ids_of_fixed_length_with_the_objectives() -> None:
    plain = body(extra_body='{"temperature": null, "user": "me"}')
    assert plain["prompt"] == [5, 6, 7]
    assert (plain["max_tokens"], plain["ignore_eos"]) == (3, True)
    assert plain["slo"] == {"ttft_s": 0.5, "tbt_s": 0.05}
    assert "temperature" not in plain and plain["user"] == "me"
    assert body(api="chat")["messages"] == [{"role": "user", "content": "f g h"}]


def test_a_request_says_how_it_is_sampled_and_may_end() -> None:
    assert body()["temperature"] == 0.0
    assert "seed" not in body()
    warm = dataclasses.replace(REQUEST, ignore_eos=False, temperature=0.7, seed=5)
    sent = body(warm)
    assert (sent["ignore_eos"], sent["temperature"], sent["seed"]) == (False, 0.7, 5)


def test_against_a_server() -> None:
    loop = FakeLoop(step_s=0.005)
    loop.refusals = iter([None, QueueFullError("too many requests wait", 1.0)])

    async def go(url: str) -> None:
        async with open_http_client(url + "/v1/", HttpConfig()) as client:
            start_s = client.now_s()
            times_s = [time_s async for time_s in client.send(REQUEST)]
            assert len(times_s) == 3
            assert start_s < times_s[0] <= times_s[2] < client.now_s() + 1e-9
            with pytest.raises(RequestFailedError, match="HTTP 429: ") as caught:
                _ = [time_s async for time_s in client.send(REQUEST)]
            assert caught.value.failure is Failure.REJECTED
            loop.fail_with = "out of memory"
            with pytest.raises(RequestFailedError, match="out of memory"):
                _ = [time_s async for time_s in client.send(REQUEST)]
            facts = await client.facts()
            assert facts["stats"]["num_steps"] >= 3 and "device" in facts
            assert facts["publish_s"]["p50"] > 0 and facts["num_uneven_streams"] == 0
            steps = await client.steps(1)
            assert steps is not None
            assert [step.step_id for step in steps] == list(range(1, len(steps) + 1))

    with serve_fake(loop) as served:
        asyncio.run(go(served.url))
    assert loop.seen[0].slo == REQUEST.slo


def test_a_foreign_server_states_little() -> None:
    async def go(url: str) -> None:
        async with open_http_client(url, HttpConfig()) as client:
            assert await client.steps(0) is None
            facts = await client.facts()
            assert facts["served_model_name"] == "fake"
            assert not {"stats", "device"} & set(facts)

    with serve_fake(is_jserve=False) as served:
        asyncio.run(go(served.url))
