import asyncio
import dataclasses
import itertools
import json

import numpy as np
import pytest

from jserve.server.formats import DONE_EVENT, AnswerFormat, ChunkWriter
from jserve_sched.report import Failure
from jserve_sched.slo import Slo
from jserve_tools.clients import RequestFailedError, TokenTime
from jserve_tools.http_client import (
    EventStream,
    RequestForm,
    open_http_client,
    refusal,
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


def usage(tokens: int) -> bytes:
    body = {"choices": [], "usage": {"completion_tokens": tokens}}
    return f"data: {json.dumps(body)}\n\n".encode()


def times(*chunks: bytes, is_chat: bool = False) -> list[TokenTime]:
    """Feeds one chunk a second, from second 1."""
    stream = EventStream(is_chat=is_chat)
    found: list[TokenTime] = []
    for second, chunk in enumerate(chunks, start=1):
        found += stream.feed(chunk, float(second))
    return found + list(stream.finish())


def test_events_are_timed_where_their_last_byte_came() -> None:
    assert times(TOKEN + TOKEN, TOKEN[:9], TOKEN[9:] + usage(3), DONE) == [
        (0, 1.0),
        (1, 1.0),
        (2, 3.0),
    ]


def test_an_answer_without_text_has_the_token_that_ended_it() -> None:
    role = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
    assert times(role, usage(1), DONE, is_chat=True) == [(0, 3.0)]
    assert times(role, usage(0), DONE, is_chat=True) == []


def test_usage_settles_how_many_tokens_there_were() -> None:
    assert times(TOKEN, TOKEN, TOKEN, usage(2), DONE) == [(0, 1.0), (1, 2.0)]
    assert times(TOKEN, TOKEN, usage(4), DONE) == [
        (0, 1.0),
        (1, 2.0),
        (2, 2.0),
        (3, 2.0),
    ]
    assert times(TOKEN, TOKEN, DONE) == [(0, 1.0), (1, 2.0)]


def test_comments_and_carriage_returns_are_no_tokens() -> None:
    crlf = TOKEN.replace(b"\n", b"\r\n")
    assert times(b": ping\n\n", crlf, DONE) == [(0, 2.0)]


def test_chat_counts_events_with_content() -> None:
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    word = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    end = b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n'
    assert times(role, word, word, end, usage(2), DONE, is_chat=True) == [
        (0, 2.0),
        (1, 3.0),
    ]


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
    assert str(refusal(500, b"<html>")) == "500: <html>"


def test_a_request_says_how_it_is_sampled_and_may_end() -> None:
    body = json.loads(RequestForm().body(REQUEST, "m"))
    assert body["temperature"] == 0.0
    assert "seed" not in body
    warm = dataclasses.replace(REQUEST, ignore_eos=False, temperature=0.7, seed=5)
    body = json.loads(RequestForm().body(warm, "m"))
    assert (body["ignore_eos"], body["temperature"], body["seed"]) == (False, 0.7, 5)


def test_body_is_token_ids_of_fixed_length_with_the_objective() -> None:
    body = json.loads(RequestForm(extra={"temperature": None}).body(REQUEST, "m"))
    assert body["prompt"] == [5, 6, 7]
    assert body["max_tokens"] == 3
    assert body["ignore_eos"] is True
    assert body["slo"] == {"ttft_s": 0.5, "tbt_s": 0.05}
    assert "temperature" not in body
    chat = json.loads(RequestForm(api="chat").body(REQUEST, "m"))
    assert chat["messages"] == [{"role": "user", "content": "f g h"}]
    with pytest.raises(ValueError, match="api='tty' is not one of"):
        RequestForm(api="tty")


def test_against_a_server(fake_server) -> None:
    async def go() -> None:
        server = fake_server.FakeServer(
            statuses=itertools.chain([200, 429, 503], itertools.repeat(200))
        )
        async with (
            server,
            open_http_client(server.url + "/v1/", RequestForm()) as client,
        ):
            start_s = client.now_s()
            tokens = [token async for token in client.send(REQUEST)]
            assert [token.place for token in tokens] == [0, 1, 2]
            assert start_s < tokens[0].time_s < tokens[2].time_s < client.now_s()
            for failure in (Failure.REJECTED, Failure.ERROR):
                with pytest.raises(RequestFailedError) as caught:
                    _ = [token async for token in client.send(REQUEST)]
                assert caught.value.failure is failure
            server.broken_after = 1
            with pytest.raises(RequestFailedError):
                _ = [token async for token in client.send(REQUEST)]
            assert server.bodies[0]["model"] == "fake"
            stats = await client.stats()
            assert stats is not None and stats["num_steps"] >= 4
            steps = await client.steps(1)
            assert steps is not None
            assert [step.step_id for step in steps] == list(range(1, len(steps) + 1))
            assert (await client.facts())["device"] == "fake"
            assert await client.take_detokenise_s() == 2e-4
            assert client.num_uneven_streams == 0

    asyncio.run(go())


def test_a_foreign_server_tells_little(fake_server) -> None:
    async def go() -> None:
        server = fake_server.FakeServer(is_jserve=False)
        async with server, open_http_client(server.url, RequestForm()) as client:
            assert await client.stats() is None
            assert await client.steps(0) is None
            assert await client.take_detokenise_s() is None
            facts = await client.facts()
            assert facts["served_model_name"] == "fake"
            assert "device" not in facts

    asyncio.run(go())


def test_nobody_there() -> None:
    async def go() -> None:
        async with open_http_client("http://127.0.0.1:9", RequestForm()):
            pass

    with pytest.raises(ConnectionError, match="does not answer"):
        asyncio.run(go())
