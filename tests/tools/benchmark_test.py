"""A benchmark against a server whose log of steps is shorter than the run."""

import asyncio
import pathlib

import pytest

from jserve_sched.slo import BEST_EFFORT
from jserve_tools.benchmark import Benchmark, ClosedLoop
from jserve_tools.targets import Servers
from jserve_tools.workload import Workload
from jserve_tools.workload_trace import TraceRow


@pytest.mark.parametrize("num_forgotten", [0, 12])
def test_padding_is_reported_of_all_steps_or_not_at_all(
    fake_server, tmp_path: pathlib.Path, num_forgotten: int
) -> None:
    lines: list[str] = []

    async def go() -> None:
        async with fake_server.FakeServer(num_forgotten=num_forgotten) as server:
            workload = Workload(rows=[TraceRow(0.0, 8, 4)], classes=(BEST_EFFORT,))
            benchmark = Benchmark(
                servers=Servers(url=server.url, start_timeout_s=5),
                load=ClosedLoop(num_clients=(1,), num_requests=4),
                workload=workload,
                output=tmp_path,
                say=lines.append,
            )
            findings = await benchmark.run()
            (run,) = findings.runs
            # The warm-up of one request takes the first 4 steps of 20.
            assert run.summary["num_steps"] == 16
            if num_forgotten:
                assert run.summary["num_steps_missing"] == num_forgotten - 4
                assert not any(name.startswith("pad_share") for name in run.summary)
                assert "forgot 8 of 16 steps" in lines[-1]
            else:
                assert "num_steps_missing" not in run.summary
                assert run.summary["pad_share_tokens"] > 0

    asyncio.run(go())
