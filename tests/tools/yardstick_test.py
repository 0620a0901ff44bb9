import asyncio

import numpy as np
import pytest

from jserve_tools.http_client import HttpClient, RequestForm, open_http_client
from jserve_tools.replay import Flight
from jserve_tools.workload import Workload
from jserve_tools.workload_trace import TraceRow
from jserve_tools.yardstick import (
    mean_step_s,
    measure_capacity,
    measure_yardstick,
    price_request,
    tokens_by_slice,
)

ROWS = [TraceRow(float(i), 32 * (1 + i % 3), 5 + i % 4) for i in range(24)]


def test_costs_of_known_slices_are_found() -> None:
    prompts = np.array([100.0, 0.0, 50.0])
    outputs = np.array([0.0, 50.0, 25.0])  # a prompt token 10 ms, an output 20 ms
    costs = price_request(1.0, prompts, outputs, 200.0, 10.0)
    assert costs == pytest.approx((0.01, 0.02, 200 * 0.01 + 10 * 0.02))


def test_a_steady_mix_is_priced_exactly_whatever_the_split() -> None:
    prompts, outputs = np.full(5, 400.0), np.full(5, 80.0)
    *_, request_s = price_request(1.0, prompts, outputs, 100.0, 20.0)
    assert request_s == pytest.approx(0.25)  # four such requests a second were done


def test_costs_are_never_negative() -> None:
    prompts = np.array([10.0, 20.0, 40.0])
    outputs = np.array([50.0, 50.0, 50.0])  # more prompts took no longer
    prompt_s, output_s, _ = price_request(1.0, prompts, outputs, 1.0, 1.0)
    assert prompt_s == pytest.approx(0.0, abs=1e-12)
    assert output_s == pytest.approx(0.02)
    with pytest.raises(RuntimeError, match="no token came"):
        price_request(1.0, np.zeros(2), np.zeros(2), 1.0, 1.0)


def test_prompts_are_spread_over_the_time_before_their_first_token() -> None:
    workload = Workload(rows=ROWS)

    def flight(prompt_tokens: int, *times_s: float) -> Flight:
        request = workload.request(0, 0, prompt_tokens=prompt_tokens, max_tokens=9)
        return Flight(request=request, arrival_s=0.0, token_times_s=list(times_s))

    flights = [flight(100, 1.0, 1.5), flight(80, 3.0, 3.5, 9.0), flight(7)]
    prompts, outputs = tokens_by_slice(flights, 1.0, 1.0, 3)
    assert prompts.tolist() == [40.0, 40.0, 0.0]
    assert outputs.tolist() == [2, 0, 2]


def test_tokens_that_are_read_together_still_have_a_step_time() -> None:
    burst = [1.0] * 24 + [1.048] * 24  # 46 of 47 gaps are 0
    slow = [1.0 + 0.002 * k for k in range(48)]
    assert mean_step_s([burst, slow, [2.0]]) == pytest.approx((0.048 / 47 + 0.002) / 2)
    assert mean_step_s([burst] * 3) == pytest.approx(0.048 / 47)
    for bad in ([[1.0, 1.0]], [[1.0], []]):
        with pytest.raises(RuntimeError, match="decode step cannot be measured"):
            mean_step_s(bad)


def test_the_curve_and_the_step_of_a_known_server(fake_server) -> None:
    async def go() -> None:
        server = fake_server.FakeServer(base_s=0.004, token_s=0.0005, chunk=128)
        workload = Workload(rows=[TraceRow(0, 32, 5), TraceRow(1, 128, 5)])
        async with server, open_http_client(server.url, RequestForm()) as client:
            found = await measure_yardstick(client, workload, 0)
        assert (found.prompt_tokens[0], found.prompt_tokens[-1]) == (32, 128)
        assert found.ttft_s[0] == pytest.approx(0.020, rel=0.6)
        assert found.ttft_s[-1] == pytest.approx(0.068, rel=0.5)
        assert list(found.ttft_s) == sorted(found.ttft_s)
        assert found.step_s == pytest.approx(0.004, rel=0.8)
        ids = [tuple(body["prompt"]) for body in server.bodies]
        assert len(set(ids)) == len(ids)  # no prompt is sent twice

    asyncio.run(go())


def test_capacity_of_a_known_server(fake_server) -> None:
    async def go() -> None:
        # Only output tokens cost: 4 rows a step of 10 ms, and 6.5 tokens a request,
        # so 400 / 6.5 requests a second; sleeping takes a little longer.
        server = fake_server.FakeServer(base_s=0.010, chunk=10**6, num_slots=4)
        async with server, open_http_client(server.url, RequestForm()) as client:
            found = await measure_capacity(
                client, Workload(rows=ROWS), 1, num_slots=4, duration_s=1.5
            )
        assert found.requests_per_s == pytest.approx(400 / 6.5, rel=0.35)
        assert found.num_clients == 6
        assert found.window_s == pytest.approx(1.5, abs=0.5)
        assert not server.jobs  # what was cut off has left the server

    asyncio.run(go())


def test_a_bug_under_load_is_not_taken_for_no_capacity(fake_server) -> None:
    class Buggy(HttpClient):
        async def send(self, request):
            if request.request_id.endswith("-9"):
                raise KeyError("mine")
            async for token in super().send(request):
                yield token

    async def go() -> None:
        async with (
            fake_server.FakeServer() as server,
            open_http_client(server.url, RequestForm()) as client,
        ):
            client.__class__ = Buggy
            await measure_capacity(
                client, Workload(rows=ROWS), 1, num_slots=2, duration_s=5
            )

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(go())


def test_a_server_that_refuses_has_no_capacity(fake_server) -> None:
    async def go(statuses: list[int]) -> None:
        server = fake_server.FakeServer(statuses=iter(statuses * 5000))
        async with server, open_http_client(server.url, RequestForm()) as client:
            with pytest.raises(RuntimeError, match=r"a lone request of 32 .*made up"):
                await measure_yardstick(client, Workload(rows=ROWS), 0)
            with pytest.raises(RuntimeError, match="fails under full load: 503"):
                await measure_capacity(
                    client, Workload(rows=ROWS), 1, num_slots=2, duration_s=0.2
                )

    asyncio.run(go([503]))
