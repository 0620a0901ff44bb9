import asyncio
import itertools
from collections.abc import AsyncGenerator

import numpy as np
import pytest

from fake_server import FakeLoop, serve_fake
from jserve.events import NotServingError
from jserve_tools.bench_config import HttpConfig
from jserve_tools.capacity import (
    Capacity,
    measure_capacity,
    token_costs_s,
    tokens_by_slice,
)
from jserve_tools.http_client import HttpClient, open_http_client
from jserve_tools.replay import Flight
from jserve_tools.workload import Workload, WorkloadRequest
from jserve_tools.workload_trace import TraceRow

ROWS = [TraceRow(float(i), 32 * (1 + i % 3), 5 + i % 4) for i in range(24)]


@pytest.mark.parametrize(
    ("work", "slice_s", "wanted"),
    [
        # A prompt token takes 10 ms, an output token 20 ms.
        ([[100, 0], [0, 50], [50, 25]], 1.0, (0.01, 0.02)),
        # More prompts took no longer: a cost is never negative.
        ([[10, 50], [20, 50], [40, 50]], 1.0, (0.0, 0.02)),
    ],
)
def test_costs_of_known_slices_are_found(
    work: list[list[float]], slice_s: float, wanted: tuple[float, float]
) -> None:
    assert token_costs_s(np.array(work), slice_s) == pytest.approx(wanted, abs=1e-12)


def test_a_steady_mix_is_priced_exactly_whatever_the_split() -> None:
    costs_s = token_costs_s(np.array([[400.0, 80.0]] * 5), 1.0)
    assert costs_s @ [100, 20] == pytest.approx(0.25)  # four such a second were done
    with pytest.raises(RuntimeError, match="no token came"):
        token_costs_s(np.zeros((2, 2)), 1.0)


def test_prompts_are_spread_over_the_time_before_their_first_token() -> None:
    workload = Workload(rows=ROWS)

    def flight(prompt_tokens: int, *times_s: float) -> Flight:
        request = workload.request(0, 0, prompt_tokens=prompt_tokens, max_tokens=9)
        return Flight(request=request, arrival_s=0.0, token_times_s=list(times_s))

    flights = [flight(100, 1.0, 1.5), flight(80, 3.0, 3.5, 9.0), flight(7)]
    work = tokens_by_slice(flights, 1.0, 1.0, 3)
    assert work.tolist() == [[40.0, 2.0], [40.0, 0.0], [0.0, 2.0]]
    assert not tokens_by_slice(flights[2:], 1.0, 1.0, 3).any()


class BuggyClient(HttpClient):
    async def send(self, request: WorkloadRequest) -> AsyncGenerator[float, None]:
        if request.request_id.endswith("-9"):
            raise KeyError("mine")
        async for time_s in super().send(request):
            yield time_s


def measure(
    loop: FakeLoop, *, client_class: type = HttpClient, duration_s: float
) -> Capacity:
    async def go(url: str) -> Capacity:
        async with open_http_client(url, HttpConfig()) as client:
            client.__class__ = client_class
            return await measure_capacity(
                client, Workload(rows=ROWS), 1, num_slots=4, duration_s=duration_s
            )

    with serve_fake(loop) as served:
        return asyncio.run(go(served.url))


def test_capacity_of_a_known_server() -> None:
    # Only output tokens cost: 4 rows a step of 20 ms, and 6.5 tokens a request, so
    # 200 / 6.5 requests a second; sleeping takes a little longer.
    loop = FakeLoop(step_s=0.020, num_slots=4)
    found = measure(loop, duration_s=1.5)
    assert 0.4 * 200 / 6.5 < found.requests_per_s < 1.15 * 200 / 6.5
    assert found.num_clients == 6
    assert found.window_s == pytest.approx(1.5, abs=0.5)
    assert not loop.num_live()  # what was cut off has left the server


def test_a_bug_under_load_is_not_taken_for_no_capacity() -> None:
    with pytest.raises(KeyError, match="mine"):
        measure(FakeLoop(), client_class=BuggyClient, duration_s=5)


def test_a_server_that_refuses_has_no_capacity() -> None:
    loop = FakeLoop()
    loop.refusals = itertools.repeat(NotServingError("draining"))
    with pytest.raises(RuntimeError, match="fails under full load: HTTP 503"):
        measure(loop, duration_s=0.2)
