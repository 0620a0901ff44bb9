import asyncio
import itertools
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest

from jserve.records.events import NotServingError
from jserve_sched.requests.service_class import ServiceClass
from jserve_sched.simulation.workload import Yardstick
from jserve_tools.load.clients import Client, open_client
from jserve_tools.load.replay import Flight
from jserve_tools.load.workload import Workload, WorkloadRequest
from jserve_tools.load.workload_trace import TraceRow
from jserve_tools.measuring.baseline import (
    mean_step_s,
    measure_capacity,
    measure_yardstick,
    slo_table,
    token_costs_s,
    tokens_by_slice,
)
from tests.fake_loop import FakeLoop
from tests.fake_server import serve_fake

ROWS = [TraceRow(float(i), 32 * (1 + i % 3), 5 + i % 4) for i in range(24)]


class BuggyClient(Client):
    async def send(self, request: WorkloadRequest) -> AsyncGenerator[float, None]:
        if request.request_id.endswith("-9"):
            raise KeyError("mine")
        async for time_s in super().send(request):
            yield time_s


def measured(loop: FakeLoop, measure, client_class: type = Client):
    async def go(url: str):
        async with open_client(url) as client:
            client.__class__ = client_class
            return await measure(client)

    with serve_fake(loop) as served:
        return asyncio.run(go(served.url))


def yardstick(loop: FakeLoop, *rows: TraceRow):
    return measured(loop, lambda one: measure_yardstick(one, Workload(rows=rows)))


def capacity(loop: FakeLoop, *, duration_s: float, client_class: type = Client):
    settings: Any = {"num_slots": 4, "duration_s": duration_s}
    workload = Workload(rows=ROWS)
    return measured(
        loop, lambda one: measure_capacity(one, workload, **settings), client_class
    )


def test_tokens_that_are_read_together_still_have_a_step_time() -> None:
    burst = [1.0] * 24 + [1.048] * 24  # 46 of 47 gaps are 0
    slow = [1.0 + 0.002 * k for k in range(48)]
    assert mean_step_s([burst, slow, [2.0]]) == pytest.approx((0.048 / 47 + 0.002) / 2)
    assert mean_step_s([burst] * 3) == pytest.approx(0.048 / 47)
    for bad in ([[1.0, 1.0]], [[1.0], []]):
        with pytest.raises(RuntimeError, match="decode step cannot be measured"):
            mean_step_s(bad)


def test_the_curve_and_the_step_of_a_known_server() -> None:
    loop = FakeLoop(step_s=0.006, prompt_token_s=0.0005, chunk_tokens=128)
    found = yardstick(loop, TraceRow(0, 32, 5), TraceRow(1, 128, 5))
    assert (found.prompt_tokens[0], found.prompt_tokens[-1]) == (32, 128)
    # No shorter than the server sleeps; longer where the machine is busy.
    assert 0.022 <= found.ttft_s[0] < 0.1
    assert 0.070 <= found.ttft_s[-1] < 0.3
    assert list(found.ttft_s) == sorted(found.ttft_s)
    assert 0.006 <= found.step_s < 0.03
    prompts = [tuple(one.prompt_tokens) for one in loop.seen]
    assert len(set(prompts)) == len(prompts)  # no prompt is sent twice


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


def test_capacity_of_a_known_server() -> None:
    # Only output tokens cost: 4 rows a step of 20 ms, and 6.5 tokens a request, so
    # 200 / 6.5 requests a second; sleeping takes a little longer.
    loop = FakeLoop(step_s=0.020, num_slots=4)
    found = capacity(loop, duration_s=1.5)
    assert 0.4 * 200 / 6.5 < found.requests_per_s < 1.15 * 200 / 6.5
    assert found.num_clients == 6
    assert found.window_s == pytest.approx(1.5, abs=0.5)
    assert not loop.num_live()  # what was cut off has left the server


def test_a_bug_under_load_is_not_taken_for_no_capacity() -> None:
    with pytest.raises(KeyError, match="mine"):
        capacity(FakeLoop(), client_class=BuggyClient, duration_s=5)


def test_a_server_that_refuses_has_neither_yardstick_nor_capacity() -> None:
    def refusing() -> FakeLoop:
        loop = FakeLoop()
        loop.refusals = itertools.repeat(NotServingError("draining"))
        return loop

    with pytest.raises(RuntimeError, match="fails under full load: HTTP 503"):
        capacity(refusing(), duration_s=0.2)
    with pytest.raises(RuntimeError, match=r"lone request of 32 .*failed: HTTP 503"):
        yardstick(refusing(), TraceRow(0.0, 32, 5))


def test_slo_table_gives_bounds_and_counts() -> None:
    tight = ServiceClass(name="tight", share=1.0, ttft_slowdown=2, tbt_step_multiple=4)
    workload = Workload(rows=[TraceRow(0, 10, 1), TraceRow(1, 20, 1)], classes=(tight,))
    table = slo_table(
        workload, Yardstick(prompt_tokens=(10, 20), ttft_s=(0.1, 0.6), step_s=0.01)
    )
    assert table.splitlines()[-1].split() == [
        *("tight", "1", "2", "200.0ms", "to", "1.20s", "40.0ms", "none")
    ]
