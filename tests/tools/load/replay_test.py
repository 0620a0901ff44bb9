import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest

from jserve_sched.outcomes import Failure
from jserve_sched.requests.slo import Slo
from jserve_tools.load.clients import RequestFailedError
from jserve_tools.load.replay import Flight, closed_loop, replay
from jserve_tools.load.workload import WorkloadRequest


class ScriptedClient:
    """Answers request `i` with one token after `delays_s[i]`, or fails."""

    def __init__(self, delays_s: dict[str, float] | None = None):
        self.delays_s = delays_s or {}
        self.sent_s: dict[str, float] = {}
        self.answered = {"degraded": {"x-jserve-admission": "degraded"}}
        self.num_cancelled = 0
        self.num_flying = 0
        self.most_flying = 0

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def send(self, request: WorkloadRequest) -> AsyncGenerator[float, None]:
        self.sent_s[request.request_id] = self.now_s()
        self.num_flying += 1
        self.most_flying = max(self.most_flying, self.num_flying)
        try:
            if request.service_class == "refused":
                raise RequestFailedError(Failure.REJECTED, "429: full")
            if request.service_class == "buggy":
                raise KeyError("a bug in the client")
            for _ in range(request.max_tokens):
                await asyncio.sleep(self.delays_s.get(request.request_id, 0.001))
                yield self.now_s()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_flying -= 1


def request(
    name: str, arrival_s: float = 0.0, *, service_class: str = "a", max_tokens: int = 1
) -> WorkloadRequest:
    return WorkloadRequest(
        request_id=name,
        arrival_s=arrival_s,
        prompt=np.ones(2, np.int32),
        max_tokens=max_tokens,
        service_class=service_class,
        slo=Slo(ttft_s=5.0),
    )


def test_requests_leave_on_time_whatever_the_server_does() -> None:
    async def go() -> None:
        client: Any = ScriptedClient({"0": 0.3})  # the first answer is slow
        requests = [request(str(i), 0.05 * i) for i in range(4)]
        flights: list[Flight] = []
        await replay(client, requests, flights)
        start_s = client.sent_s["0"]
        for i in range(4):
            assert client.sent_s[str(i)] - start_s == pytest.approx(0.05 * i, abs=0.02)
        assert [flight.failure for flight in flights] == [None] * 4

    asyncio.run(go())


def test_latency_counts_from_the_scheduled_arrival() -> None:
    flight = Flight(request=request("x"), arrival_s=10.0, sent_s=10.4)
    flight.token_times_s.append(11.0)
    flight.is_over = True
    outcome = flight.outcome()
    assert outcome.ttft_s == 1.0  # not 0.6: being sent late counts
    assert outcome.is_attained


def test_failures_are_kept_by_cause() -> None:
    async def go() -> None:
        flights: list[Flight] = []
        requests = [request("0"), request("1", service_class="refused")]
        requests.append(request("degraded"))
        client: Any = ScriptedClient()
        await replay(client, requests, flights)
        outcomes = [flight.outcome() for flight in flights]
        assert [outcome.failure for outcome in outcomes] == [
            None,
            Failure.REJECTED,
            None,
        ]
        assert outcomes[1].message == "429: full"
        assert not outcomes[1].is_attained
        assert (outcomes[2].violation, outcomes[2].is_committed) == ("degraded", False)

    asyncio.run(go())


def test_what_never_ends_is_given_up_with_the_tokens_it_had() -> None:
    async def go() -> None:
        client: Any = ScriptedClient({"0": 0.1})
        flights: list[Flight] = []
        await replay(client, [request("0", max_tokens=1000)], flights, min_grace_s=0.25)
        outcome = flights[0].outcome()
        assert outcome.message.startswith("no end after")
        assert outcome.failure is Failure.UNFINISHED
        assert 1 <= len(outcome.token_times_s) <= 2
        assert client.num_cancelled == 1

    asyncio.run(go())


def test_a_bug_in_the_client_is_not_a_slow_server() -> None:
    client: Any = ScriptedClient()
    with pytest.raises(KeyError, match="a bug"):
        asyncio.run(replay(client, [request("0", service_class="buggy")], []))


def test_an_interrupt_cancels_what_flies() -> None:
    async def go() -> None:
        client: Any = ScriptedClient({"0": 9.0})
        requests = [request("0"), request("1", 9.0)]
        task = asyncio.create_task(replay(client, requests, []))
        await asyncio.sleep(0.15)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.num_cancelled == 1

    asyncio.run(go())


def test_closed_loop_keeps_its_clients_busy() -> None:
    async def go() -> None:
        client: Any = ScriptedClient()
        flights: list[Flight] = []
        requests = (request(str(i), max_tokens=2) for i in range(10))
        await closed_loop(client, requests, flights, num_clients=3)
        assert len(flights) == 10
        assert client.most_flying == 3
        assert all(flight.outcome().is_attained for flight in flights)
        assert all(flight.arrival_s <= flight.token_times_s[0] for flight in flights)

    asyncio.run(go())
