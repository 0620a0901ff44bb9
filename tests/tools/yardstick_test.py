import asyncio
import itertools

import pytest

from fake_server import FakeLoop, serve_fake
from jserve.events import NotServingError
from jserve_tools.bench_config import HttpConfig
from jserve_tools.http_client import open_http_client
from jserve_tools.workload import Workload
from jserve_tools.workload_trace import TraceRow
from jserve_tools.yardstick import mean_step_s, measure_yardstick


def test_tokens_that_are_read_together_still_have_a_step_time() -> None:
    burst = [1.0] * 24 + [1.048] * 24  # 46 of 47 gaps are 0
    slow = [1.0 + 0.002 * k for k in range(48)]
    assert mean_step_s([burst, slow, [2.0]]) == pytest.approx((0.048 / 47 + 0.002) / 2)
    assert mean_step_s([burst] * 3) == pytest.approx(0.048 / 47)
    for bad in ([[1.0, 1.0]], [[1.0], []]):
        with pytest.raises(RuntimeError, match="decode step cannot be measured"):
            mean_step_s(bad)


def measure(loop: FakeLoop, workload: Workload):
    async def go(url: str):
        async with open_http_client(url, HttpConfig()) as client:
            return await measure_yardstick(client, workload, 0)

    with serve_fake(loop) as served:
        return asyncio.run(go(served.url))


def test_the_curve_and_the_step_of_a_known_server() -> None:
    loop = FakeLoop(step_s=0.006, prompt_token_s=0.0005, chunk_tokens=128)
    workload = Workload(rows=[TraceRow(0, 32, 5), TraceRow(1, 128, 5)])
    found = measure(loop, workload)
    assert (found.prompt_tokens[0], found.prompt_tokens[-1]) == (32, 128)
    # No shorter than the server sleeps; longer where the machine is busy.
    assert 0.022 <= found.ttft_s[0] < 0.1
    assert 0.070 <= found.ttft_s[-1] < 0.3
    assert list(found.ttft_s) == sorted(found.ttft_s)
    assert 0.006 <= found.step_s < 0.03
    prompts = [tuple(one.prompt_tokens) for one in loop.seen]
    assert len(set(prompts)) == len(prompts)  # no prompt is sent twice


def test_a_server_that_refuses_has_no_yardstick() -> None:
    loop = FakeLoop()
    loop.refusals = itertools.repeat(NotServingError("draining"))
    with pytest.raises(RuntimeError, match=r"lone request of 32 .*failed: HTTP 503"):
        measure(loop, Workload(rows=[TraceRow(0.0, 32, 5)]))
