import asyncio
import dataclasses
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from jserve.config import EngineConfig
from jserve.events import NotServingError, QueueFullError, TokenEvent
from jserve_sched.clock import WallClock
from jserve_sched.report import Failure
from jserve_sched.request import FinishReason, Request, SamplingParams
from jserve_tools.clients import RequestFailedError
from jserve_tools.loop_client import LoopClient
from jserve_tools.workload import WorkloadRequest

ROUTES = {
    "too long": (ValueError("17 tokens exceed 16"), Failure.TOO_LONG),
    "full": (QueueFullError("1 waits", 1.0), Failure.REJECTED),
    "draining": (NotServingError("draining"), Failure.ERROR),
}


class FakeLoop:
    """Publishes, from a thread, what the request's name asks for."""

    config = EngineConfig()
    clock = WallClock()
    max_model_len = 64
    num_kv_tokens = 256

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.requests: list[Request] = []

    def set_listener(self, publish: Callable[[Sequence[TokenEvent]], None]) -> None:
        self.publish = publish

    def submit(self, request: Request) -> None:
        self.requests.append(request)
        name = request.request_id
        if name in ROUTES:
            raise ROUTES[name][0]
        threading.Thread(target=self._speak, args=(name, request.max_tokens)).start()

    def _speak(self, name: str, max_tokens: int) -> None:
        now_s = self.clock.now_s()
        if name == "broken":
            self.publish([TokenEvent(name, None, now_s, error="out of luck")])
        elif name == "cut":
            reason = FinishReason.CANCELLED
            self.publish([TokenEvent(name, None, now_s, finish_reason=reason)])
        else:
            for token in range(max_tokens):
                is_last = token == max_tokens - 1 and name != "endless"
                reason = FinishReason.LENGTH if is_last else None
                self.publish(
                    [
                        TokenEvent(name, token, self.clock.now_s(), reason),
                        TokenEvent("someone else", 1, 0.0),
                    ]
                )

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)


def request(name: str, max_tokens: int = 3) -> WorkloadRequest:
    return WorkloadRequest(
        request_id=name,
        arrival_s=0.0,
        prompt=np.array([1, 2], np.int32),
        max_tokens=max_tokens,
    )


def test_tokens_arrive_with_rising_times() -> None:
    async def go() -> None:
        loop = FakeLoop()
        client = LoopClient(loop, eos_token_ids=frozenset())
        times_s = [time_s async for time_s in client.send(request("a"))]
        assert len(times_s) == 3 and times_s == sorted(times_s)
        assert loop.cancelled == []
        assert loop.requests[0].stop_token_ids == frozenset()  # ignores EOS

    asyncio.run(go())


def test_an_answer_may_end_where_the_model_ends_it() -> None:
    async def go() -> None:
        loop = FakeLoop()
        client = LoopClient(loop, eos_token_ids=frozenset({7}))
        one = request("a")
        warm = dataclasses.replace(one, ignore_eos=False, temperature=0.7, seed=5)
        for sent in (one, warm):
            _ = [token async for token in client.send(sent)]
        plain, sampled = loop.requests
        assert plain.stop_token_ids == frozenset()
        assert plain.sampling == SamplingParams()
        assert sampled.stop_token_ids == {7}
        assert sampled.sampling == SamplingParams(temperature=0.7, seed=5)

    asyncio.run(go())


@pytest.mark.parametrize("name", [*ROUTES, "broken", "cut"])
def test_failures_by_cause(name: str) -> None:
    async def go() -> None:
        loop = FakeLoop()
        client = LoopClient(loop, eos_token_ids=frozenset())
        with pytest.raises(RequestFailedError) as caught:
            _ = [token async for token in client.send(request(name))]
        wanted = ROUTES[name][1] if name in ROUTES else Failure.ERROR
        assert caught.value.failure is wanted
        assert loop.cancelled == []

    asyncio.run(go())


def test_closing_the_stream_cancels_the_request() -> None:
    async def go() -> None:
        loop = FakeLoop()
        client = LoopClient(loop, eos_token_ids=frozenset())
        tokens = client.send(request("endless"))
        await anext(tokens)
        await tokens.aclose()
        assert loop.cancelled == ["endless"]

    asyncio.run(go())


def test_the_engine_survives_a_listener_whose_loop_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = FakeLoop()

    async def go() -> None:
        LoopClient(loop, eos_token_ids=frozenset())
        # As if the loop closed between a look at it and the call.
        monkeypatch.setattr(asyncio.get_running_loop(), "is_closed", lambda: False)

    asyncio.run(go())
    loop.publish([TokenEvent("a", 1, 0.0)])
