import asyncio
import json

import numpy as np
import pytest

from jserve.records.events import QueueFullError
from jserve.server.formats import DONE_EVENT, AnswerFormat, ChunkWriter
from jserve_sched.outcomes import Failure
from jserve_sched.requests.slo import Slo
from jserve_tools.load.clients import (
    EventStream,
    RequestFailedError,
    open_client,
    refusal,
    request_body,
)
from jserve_tools.load.workload import WorkloadRequest
from tests.fake_loop import FakeLoop
from tests.fake_server import serve_fake

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


def times(*chunks: bytes) -> list[float]:
    """Feeds one chunk a second, from second 1."""
    stream = EventStream()
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


def test_an_abort_as_the_server_writes_it_is_a_failure() -> None:
    form = AnswerFormat(is_chat=False, response_id="r", created_s=1, model="m")
    writer = ChunkWriter(form, 0)
    quoted = writer.event('says "finish_reason": "abort"', None, [7], ())
    assert len(times(quoted, DONE_EVENT)) == 1
    with pytest.raises(RequestFailedError, match="aborted"):
        times(quoted, writer.event("", "abort", [], ()), DONE_EVENT)


def test_refusals_by_cause() -> None:
    long = b'{"error": {"message": "m", "code": "context_length_exceeded"}}'
    assert refusal(429, b"busy").failure is Failure.REJECTED
    assert refusal(400, long).failure is Failure.TOO_LONG
    assert refusal(400, b"{}").failure is Failure.ERROR
    assert str(refusal(500, b"<html>")) == "HTTP 500: <html>"


def test_body_is_token_ids_of_fixed_length_with_the_objectives() -> None:
    extra = {"temperature": None, "user": "me"}
    body = json.loads(request_body(REQUEST, "m", extra))
    assert body["prompt"] == [5, 6, 7]
    assert (body["max_tokens"], body["ignore_eos"]) == (3, True)
    assert body["slo"] == {"ttft_s": 0.5, "tbt_s": 0.05}
    assert "temperature" not in body and body["user"] == "me"


def test_against_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = FakeLoop(step_s=0.005)
    loop.refusals = iter([None, QueueFullError("too many requests wait", 1.0)])
    monkeypatch.setenv("OPENAI_API_KEY", "secret")

    async def go(url: str) -> None:
        async with open_client(url + "/v1/") as client:
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
            assert facts["publish_s"]["p50"] > 0
            steps = await client.steps(1)
            assert steps is not None
            assert [step.step_id for step in steps] == list(range(1, len(steps) + 1))

    with serve_fake(loop) as served:
        asyncio.run(go(served.url))
    assert loop.seen[0].slo == REQUEST.slo


def test_a_foreign_server_states_little() -> None:
    async def go(url: str) -> None:
        async with open_client(url) as client:
            assert await client.steps(0) is None
            facts = await client.facts()
            assert facts["served_model_name"] == "fake"
            assert not {"stats", "device"} & set(facts)

    with serve_fake(is_jserve=False) as served:
        asyncio.run(go(served.url))
