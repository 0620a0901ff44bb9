"""Benchmarks against a made-up server: forgotten steps, interruptions, starts."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Iterator

import pytest

from jserve.config import EngineConfig
from jserve_sched.slo import BEST_EFFORT, ServiceClass
from jserve_tools.benchmark import Benchmark, Findings
from jserve_tools.clients import Client
from jserve_tools.http_client import RequestForm
from jserve_tools.loads import ClosedLoop, Replay
from jserve_tools.run_store import RunStore
from jserve_tools.targets import Servers, Target, server_at
from jserve_tools.workload import Answers, Workload
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
                store=RunStore(tmp_path / "runs", resumes=True),
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


@pytest.mark.parametrize("ignore_eos", [True, False])
def test_an_answer_that_ends_by_itself_is_complete_and_was_guessed(
    fake_server, tmp_path: pathlib.Path, ignore_eos: bool
) -> None:
    async def go() -> None:
        async with fake_server.FakeServer(natural_tokens=3) as server:
            workload = Workload(
                rows=[TraceRow(0.01 * k, 8, 5) for k in range(4)],
                classes=(ServiceClass(name="all", share=1.0, ttlt_s=60.0),),
                answers=Answers(
                    ignore_eos=ignore_eos,
                    declared_max_tokens=0 if ignore_eos else 9,
                    temperature=0.5,
                ),
            )
            benchmark = Benchmark(
                servers=Servers(url=server.url, start_timeout_s=5),
                load=Replay(qps=(50.0,)),
                workload=workload,
                output=tmp_path,
                store=RunStore(tmp_path / "runs", resumes=True),
                say=lambda _: None,
            )
            (run,) = (await benchmark.run()).runs
            lengths = [len(one.token_times_s) for one in run.outcomes]
            assert lengths == [5 if ignore_eos else 3] * 4
            assert all(one.is_met for one in run.outcomes)
            assert run.summary["num_short_outputs"] == 0
            assert [one["max_tokens"] for one in server.bodies[-4:]] == (
                [5 if ignore_eos else 9] * 4
            )
            if ignore_eos:
                assert "length_error" not in run.summary
                return
            assert run.summary["length_error"] == {
                "all": {
                    "num_requests": 4,
                    "mean_tokens": 3.0,
                    "mean_predicted_tokens": 9.0,
                    "mean_abs_error_tokens": 6.0,
                }
            }

    asyncio.run(go())


class Interruption(Exception):
    pass


class OwnServers:
    """Engines of our own, each of which is the one fake server.

    `opened` takes policy, strategy and compile cache of each start; the start of
    number `breaks_at` fails.
    """

    form = RequestForm()
    is_launched = False
    profiles_host = False

    def __init__(
        self,
        url: str,
        policies: str,
        strategies: str = "pow2",
        *,
        breaks_at: int = -1,
        measures_warm_start: bool = False,
    ) -> None:
        self.url = url
        self.configs = [
            EngineConfig(policy=policy, bucket_strategy=strategy)
            for strategy in strategies.split()
            for policy in policies.split()
        ]
        self.breaks_at = breaks_at
        self.measures_warm_start = measures_warm_start
        self.opened: list[tuple[str, str, str]] = []

    def targets(self, output: pathlib.Path) -> Iterator[Target]:
        for config in self.configs:
            yield Target(name=config.policy, config=config, opener=self.open_fake)

    @contextlib.asynccontextmanager
    async def open_fake(self, config: EngineConfig) -> AsyncIterator[Client]:
        if len(self.opened) == self.breaks_at:
            raise Interruption
        start = (config.policy, config.bucket_strategy, config.compile_cache_dir)
        self.opened.append(start)
        async with server_at(self.url, self.form, start_timeout_s=5) as client:
            yield client


RELATIVE = ServiceClass(name="all", share=1.0, ttft_slowdown=50, tbt_step_multiple=50)
WORKLOAD = Workload(
    rows=[TraceRow(0.01 * k, 8 + 8 * (k % 2), 4) for k in range(6)], classes=(RELATIVE,)
)


RATES = Replay(qps=(50.0, 80.0))
SHARES = Replay(loads=(0.5, 0.9), capacity_s=1.0)


async def replay_on(
    servers: OwnServers | Servers,
    folder: pathlib.Path,
    *,
    load: Replay = RATES,
    resumes: bool = True,
) -> Findings:
    return await Benchmark(
        servers=servers,
        load=load,
        workload=WORKLOAD,
        output=folder,
        store=RunStore(folder / "runs", resumes=resumes),
        say=lambda line: None,
    ).run()


def test_a_sweep_goes_on_where_it_was_interrupted(
    fake_server, tmp_path: pathlib.Path
) -> None:
    async def go() -> None:
        async with fake_server.FakeServer() as server:
            broken = OwnServers(server.url, "fcfs edf sjf", breaks_at=2)
            with pytest.raises(Interruption):
                await replay_on(broken, tmp_path, load=SHARES)
            # Two runs of two policies, and what they were judged by.
            files = {path: path.stat() for path in (tmp_path / "runs").iterdir()}
            assert len(files) == 5

            whole = OwnServers(server.url, "fcfs edf sjf")
            findings = await replay_on(whole, tmp_path, load=SHARES)
            assert [start[0] for start in whole.opened] == ["sjf"]
            assert findings.num_resumed == 4
            assert len(findings.runs) == 6
            assert findings.capacity is not None and findings.yardstick is not None
            rates = [run.summary["qps"] for run in findings.runs]
            assert rates == pytest.approx(
                [share * findings.capacity.requests_per_s for share in (0.5, 0.9)] * 3,
                rel=1e-3,
            )
            assert all(len(run.outcomes) == 6 and run.steps for run in findings.runs)
            # The promises are those that the first call measured.
            bounds = {
                run.outcomes[0].slo.ttft_s for run in findings.runs if run.outcomes
            }
            assert len(bounds) == 1

            again = OwnServers(server.url, "fcfs edf sjf")
            repeated = await replay_on(again, tmp_path, load=SHARES)
            assert again.opened == []
            assert repeated.num_resumed == 6
            assert repeated.runs[:4] == findings.runs[:4]

    asyncio.run(go())


def test_other_settings_or_a_wish_to_start_anew_measure_again(
    fake_server, tmp_path: pathlib.Path
) -> None:
    async def go() -> None:
        async with fake_server.FakeServer() as server:
            await replay_on(OwnServers(server.url, "fcfs"), tmp_path)
            other = OwnServers(server.url, "edf")
            assert (await replay_on(other, tmp_path)).num_resumed == 0
            same = OwnServers(server.url, "fcfs")
            anew = await replay_on(same, tmp_path, resumes=False)
            assert (anew.num_resumed, len(same.opened)) == (0, 1)

    asyncio.run(go())


def test_a_load_may_come_all_at_once(fake_server, tmp_path: pathlib.Path) -> None:
    async def go() -> None:
        async with fake_server.FakeServer() as server:
            servers = OwnServers(server.url, "fcfs")
            load = Replay(is_one_shot=True)
            (run,) = (await replay_on(servers, tmp_path, load=load)).runs
            assert run.summary["is_one_shot"] and "qps" not in run.summary
            assert len({one.arrival_s for one in run.outcomes}) == 1

    asyncio.run(go())


def test_a_strategy_starts_cold_once_and_then_warm(
    fake_server, tmp_path: pathlib.Path
) -> None:
    async def go() -> None:
        async with fake_server.FakeServer() as server:
            servers = OwnServers(
                server.url, "fcfs edf", "pow2 linear", measures_warm_start=True
            )
            findings = await replay_on(servers, tmp_path)
            caches = [cache for _, _, cache in servers.opened]
            assert [start[:2] for start in servers.opened] == [
                *[("fcfs", "pow2")] * 2,
                ("edf", "pow2"),
                *[("fcfs", "linear")] * 2,
                ("edf", "linear"),
            ]
            assert len(set(caches[:3])) == len(set(caches[3:])) == 1
            assert len(set(caches)) == 2
            assert not pathlib.Path(caches[0]).parent.exists()
            for run in findings.runs:
                assert run.summary["start_up"]["executable_bytes"] == 4000
                assert run.summary["start_up_warm"]["warm_s"] == 2.0
                assert run.summary["buckets"]["block_edges"] == [0, 4, 8, 16]

    asyncio.run(go())


@pytest.mark.parametrize("is_jserve", [True, False])
def test_a_server_that_tells_no_settings_is_measured_anew(
    fake_server, tmp_path: pathlib.Path, is_jserve: bool
) -> None:
    async def go() -> None:
        async with fake_server.FakeServer(is_jserve=is_jserve) as server:
            servers = Servers(url=server.url, start_timeout_s=5)
            first = await replay_on(servers, tmp_path)
            second = await replay_on(servers, tmp_path)
            assert first.num_resumed == 0
            assert second.num_resumed == (2 if is_jserve else 0)
            assert (tmp_path / "runs").exists() == is_jserve

    asyncio.run(go())
