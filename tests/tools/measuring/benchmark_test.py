"""Benchmarks against a scripted server: failures, interruptions, starts."""

import asyncio
import contextlib
import itertools
import os
import pathlib
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from jserve.config import EngineConfig
from jserve.progress import Progress
from jserve.records.events import NotServingError, QueueFullError
from jserve_tools.load.clients import Client
from jserve_tools.load.config import LoadConfig, ReplayConfig
from jserve_tools.measuring.benchmark import Benchmark
from jserve_tools.measuring.config import BenchConfig, ServersConfig
from jserve_tools.measuring.targets import open_server, server_at
from jserve_tools.reporting.config import ReportConfig
from tests import ROOT
from tests.fake_loop import STARTED, FakeLoop
from tests.fake_server import serve_fake


@pytest.fixture
def loop() -> FakeLoop:
    loop = FakeLoop(num_slots=4)
    loop.start_up = STARTED
    return loop


@pytest.fixture
def url(loop: FakeLoop) -> Iterator[str]:
    with serve_fake(loop) as served:
        yield served.url


CLASSES = '[{"name": "all", "share": 1, "ttft_slowdown": 90, "tbt_step_multiple": 90}]'


def replay(folder: pathlib.Path, *, num_rows: int = 6, **fields: Any) -> ReplayConfig:
    """A trace of short requests, 100 a second unless another rate is given."""
    trace, classes = folder / "trace.csv", folder / "classes.json"
    rows = [f"{k / 100},{8 + 8 * (k % 2)},4" for k in range(num_rows)]
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
    classes.write_text(CLASSES)
    return ReplayConfig(trace=trace, service_classes=classes, **fields)


def config(folder: pathlib.Path, servers: ServersConfig, **fields: Any) -> BenchConfig:
    resume = fields.pop("resume", True)
    engine = fields.pop("engine", EngineConfig())
    report = ReportConfig(output=folder / "out", resume=resume)
    load = LoadConfig(**fields or {"replay": replay(folder, qps=(50.0, 80.0))})
    return BenchConfig(load=load, servers=servers, engine=engine, report=report)


class Interruption(Exception):
    pass


class Opener:
    """Opens the one fake server for each engine; the start `breaks_at` fails.

    `opened` has policy, bucket strategy and compile cache of each start.
    """

    def __init__(self, url: str, *, breaks_at: int = -1) -> None:
        self.url = url
        self.breaks_at = breaks_at
        self.opened: list[tuple[str, str, str]] = []

    @contextlib.asynccontextmanager
    async def __call__(
        self, config: BenchConfig, engine: EngineConfig | None
    ) -> AsyncIterator[Client]:
        if len(self.opened) == self.breaks_at:
            raise Interruption
        assert engine is not None
        start = (engine.policy, engine.bucket_strategy, engine.compile_cache_dir)
        self.opened.append(start)
        async with server_at(self.url, timeout_s=5) as client:
            yield client


def run(config: BenchConfig, opener: Any = open_server) -> Benchmark:
    benchmark = Benchmark(config, Progress(), opener=opener)
    asyncio.run(benchmark.run())
    return benchmark


@pytest.mark.parametrize("num_forgotten", [0, 10**6])
def test_padding_is_reported_of_all_steps_or_not_at_all(
    loop: FakeLoop,
    url: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    num_forgotten: int,
) -> None:
    loop.num_forgotten = num_forgotten
    servers = ServersConfig(url=url)
    rate = replay(tmp_path, qps=(50.0,))
    (found,) = run(config(tmp_path, servers, replay=rate)).runs
    assert found["num_steps"] > 0 and found["output_tokens"] == 24
    if num_forgotten:
        assert found["num_steps_missing"] == found["num_steps"]
        assert not any(name.startswith("pad_share") for name in found)
        assert f"dropped {found['num_steps']} of" in capsys.readouterr().out
    else:
        assert "num_steps_missing" not in found
        assert found["pad_share_tokens"] > 0


def test_failed_requests_are_named_with_their_reason(
    loop: FakeLoop,
    url: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = QueueFullError("too many requests wait", 1.0)
    gone = NotServingError("the engine is draining")
    # Of an idle server: one, three for the step, three for each of six lengths.
    measuring = itertools.repeat(None, 1 + 3 + 3 * 6)
    loop.refusals = itertools.chain(measuring, [full, None, gone, full])
    replay_config = replay(tmp_path, qps=(50.0,))
    servers = ServersConfig(url=url)
    (found,) = run(config(tmp_path, servers, replay=replay_config)).runs
    first, second = found["failures"]
    assert (first["reason"], first["count"]) == ("rejected", 2)
    assert first["message"].startswith("HTTP 429: ")
    assert (second["reason"], second["count"]) == ("error", 1)
    assert second["message"].startswith("HTTP 503: ")
    assert (found["num_finished"], found["num_rejected"]) == (3, 2)
    assert f"2 failed, rejected: {first['message']}" in capsys.readouterr().out


def test_a_sweep_is_continued_where_it_was_interrupted(
    url: str, tmp_path: pathlib.Path
) -> None:
    def wanted(*policies: str) -> BenchConfig:
        servers = ServersConfig(policies=policies)
        loads = replay(tmp_path, load=(0.5, 0.9), capacity_s=1.0)
        return config(tmp_path, servers, replay=loads)

    with pytest.raises(Interruption):
        run(wanted("fcfs", "edf", "sjf"), Opener(url, breaks_at=2))
    rest = Opener(url)
    benchmark = run(wanted("fcfs", "edf", "sjf"), rest)
    assert [start[0] for start in rest.opened] == ["sjf"]
    assert (benchmark.num_resumed, len(benchmark.runs)) == (4, 6)
    assert benchmark.baseline is not None
    capacity, yardstick = benchmark.baseline.capacity, benchmark.baseline.yardstick
    assert capacity is not None and yardstick is not None
    # Rates and objectives are those that the first call measured.
    rates = [run["qps"] for run in benchmark.runs]
    assert rates == pytest.approx(
        [share * capacity.requests_per_s for share in (0.5, 0.9)] * 3, rel=1e-3
    )
    assert len({run["requests"][0]["slo"]["ttft_s"] for run in benchmark.runs}) <= 2
    # A policy that is added is judged by the baseline there was.
    more = Opener(url)
    larger = run(wanted("fcfs", "edf", "sjf", "laxity"), more)
    assert [start[0] for start in more.opened] == ["laxity"]
    assert larger.runs[:4] == benchmark.runs[:4]
    assert larger.report(["x"])["num_resumed"] == 6
    assert larger.baseline is not None and larger.baseline.yardstick == yardstick


def test_other_settings_or_no_resuming_measure_again(
    url: str, tmp_path: pathlib.Path
) -> None:
    fcfs, edf = (ServersConfig(policies=(name,)) for name in ("fcfs", "edf"))
    run(config(tmp_path, fcfs), Opener(url))
    assert run(config(tmp_path, edf), Opener(url)).num_resumed == 0
    longer = replay(tmp_path, qps=(50.0, 80.0), num_rows=7)
    assert run(config(tmp_path, fcfs, replay=longer), Opener(url)).num_resumed == 0
    assert run(config(tmp_path, fcfs, resume=False), Opener(url)).num_resumed == 0


def test_a_policy_whose_file_has_changed_is_measured_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "changing_policy.py"
    path.write_text((ROOT / "examples" / "lifo_policy.py").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    engine = EngineConfig(policy="changing_policy.LastComeFirstServed")
    benchmark = Benchmark(
        config(tmp_path, ServersConfig(policies=(engine.policy,))), Progress()
    )
    before = benchmark._key(engine, {})
    assert benchmark._key(engine, {}) == before is not None
    os.utime(path, ns=(0, 0))
    assert benchmark._key(engine, {}) != before


@pytest.mark.parametrize("is_jserve", [True, False])
def test_a_server_that_states_no_settings_is_measured_again(
    loop: FakeLoop, tmp_path: pathlib.Path, is_jserve: bool
) -> None:
    with serve_fake(loop, is_jserve=is_jserve) as served:
        wanted = config(tmp_path, ServersConfig(url=served.url))
        assert run(wanted).num_resumed == 0
        assert run(wanted).num_resumed == (2 if is_jserve else 0)
    assert (tmp_path / "out" / "runs.jsonl").exists() == is_jserve
