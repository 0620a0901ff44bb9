import asyncio
import dataclasses

import numpy as np
import pytest

from fake_server import FakeLoop
from jserve.events import NotServingError, QueueFullError, TokenEvent
from jserve_sched.report import Failure
from jserve_sched.request import FinishReason, SamplingParams
from jserve_tools.clients import RequestFailedError
from jserve_tools.loop_client import LoopClient
from jserve_tools.workload import WorkloadRequest

REQUEST = WorkloadRequest(
    request_id="r", arrival_s=0.0, prompt=np.array([1, 2], np.int32), max_tokens=3
)


async def send(client: LoopClient, request: WorkloadRequest = REQUEST) -> list[float]:
    return [time_s async for time_s in client.send(request)]


def test_an_answer_has_rising_times_and_ends_where_it_may() -> None:
    loop = FakeLoop(lambda request: [7, 8])

    async def go() -> None:
        client = LoopClient(loop, eos_token_ids=frozenset({8}))
        loop.start()
        start_s = client.now_s()
        times_s = await send(client)
        assert len(times_s) == 3 and [start_s, *times_s] == sorted([start_s, *times_s])
        warm = dataclasses.replace(REQUEST, ignore_eos=False, temperature=0.7, seed=5)
        assert len(await send(client, warm)) == 2

    asyncio.run(go())
    loop.stop()
    plain, sampled = loop.seen
    assert (plain.stop_token_ids, plain.sampling) == (frozenset(), SamplingParams())
    assert sampled.stop_token_ids == {8}
    assert sampled.sampling == SamplingParams(temperature=0.7, seed=5)
    assert loop.cancelled == []


@pytest.mark.parametrize(
    ("refusal", "failure"),
    [
        (ValueError("17 tokens exceed 16"), Failure.TOO_LONG),
        (QueueFullError("1 waits", 1.0), Failure.REJECTED),
        (NotServingError("draining"), Failure.ERROR),
    ],
)
def test_refusals_by_cause(refusal: Exception, failure: Failure) -> None:
    loop = FakeLoop()
    loop.refusals = iter([refusal])

    async def go() -> None:
        client = LoopClient(loop, eos_token_ids=frozenset())
        with pytest.raises(RequestFailedError, match=str(refusal.args[0])) as caught:
            await send(client)
        assert caught.value.failure is failure

    asyncio.run(go())
    assert loop.cancelled == []


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"error": "out of luck"}, "out of luck"),
        ({"finish_reason": FinishReason.CANCELLED}, "the engine cancelled it"),
    ],
)
def test_an_answer_that_the_engine_breaks_off_is_a_failure(
    event: dict, message: str
) -> None:
    loop = FakeLoop()

    async def go() -> None:
        client = LoopClient(loop, eos_token_ids=frozenset())
        answer = asyncio.create_task(send(client))
        await asyncio.sleep(0)
        loop._publish([TokenEvent("r", None, 0.0, **event), TokenEvent("x", 1, 0.0)])
        with pytest.raises(RequestFailedError, match=message) as caught:
            await answer
        assert caught.value.failure is Failure.ERROR

    asyncio.run(go())
    assert loop.cancelled == []


def test_closing_the_stream_cancels_the_request() -> None:
    loop = FakeLoop()

    async def go() -> None:
        client = LoopClient(loop, eos_token_ids=frozenset())
        loop.start()
        times_s = client.send(dataclasses.replace(REQUEST, max_tokens=10**6))
        await anext(times_s)
        await times_s.aclose()

    asyncio.run(go())
    loop.stop()
    assert loop.cancelled == ["r"]


def test_the_engine_survives_a_listener_whose_loop_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = FakeLoop()

    async def go() -> None:
        LoopClient(loop, eos_token_ids=frozenset())
        # As if the loop closed between a look at it and the call.
        monkeypatch.setattr(asyncio.get_running_loop(), "is_closed", lambda: False)

    asyncio.run(go())
    loop._publish([TokenEvent("a", 1, 0.0)])
