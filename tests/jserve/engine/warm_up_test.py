import dataclasses
import errno
import json
import pathlib
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jserve.build import build_loop
from jserve.config import EngineConfig
from jserve.engine.engine import Engine
from jserve.engine.loop import EngineLoop
from jserve.engine.warm_up import WarmUp
from jserve.progress import Progress
from jserve.records.events import Health, TokenEvent
from jserve_sched.buckets.table import Bucket
from jserve_sched.requests.service_class import ServiceClass
from jserve_sched.steps.features import uniform_features
from jserve_sched.timing.predictor import StepSample
from tests.engine_harness import (
    TOY_KV_BYTES,
    Inbox,
    share_programs,
    small_config,
    start,
)
from tests.fakes import ManualClock, make_request

SIX_PROGRAMS = {"row_edges": [8, 16], "block_edges": [0, 2, 4]}
COVERING = {"table", "sampler", "B16xNB4", "B16xNB0", "head16", "draw16"}


class Gate:
    """Holds compilations back after the covering set's."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch):
        self.is_open = threading.Event()
        self.is_reached = threading.Event()
        self.compile: Callable[..., None] = engine.programs.compile
        self._num_calls = 0
        monkeypatch.setattr(engine.programs, "compile", self)

    def __call__(self, buckets: Sequence[Bucket], **options: Any) -> None:
        self._num_calls += 1
        if self._num_calls > 1:
            self.is_reached.set()
            assert self.is_open.wait(120.0)
        self.compile(buckets, **options)


def serve_one(
    loop: EngineLoop, inbox: Inbox, num_prompt_tokens: int, max_tokens: int
) -> TokenEvent:
    request = make_request(num_prompt_tokens, max_tokens, arrival_s=time.monotonic())
    loop.submit(request)
    inbox.wait_for(request)
    return inbox.events[request.request_id][-1]


@pytest.fixture(scope="module")
def folder(
    shared_programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[pathlib.Path]:
    """Holds the bucket file, and what has been compiled for these tests."""
    folder = tmp_path_factory.mktemp("warm_up")
    (folder / "buckets.json").write_text(json.dumps(SIX_PROGRAMS))
    share_programs(folder / "cache", shared_programs)
    yield folder
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture
def config(folder: pathlib.Path) -> EngineConfig:
    """Six programs whose step times are not known."""
    config = small_config(
        model="toy",
        buckets=folder / "buckets.json",
        kv_cache_bytes=TOY_KV_BYTES,
        compile_cache_dir=str(folder / "cache"),
    )
    unlink_times(config)
    return config


def build_warm_up(config: EngineConfig, progress: Progress | None = None) -> WarmUp:
    return build_loop(config, progress=progress).warm_up


def unlink_times(config: EngineConfig) -> None:
    for path in pathlib.Path(config.compile_cache_dir).rglob("step_times_*.json"):
        path.unlink()


def test_a_request_is_answered_before_warm_up_ends(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = build_loop(config)
    gate = Gate(loop._engine, monkeypatch)
    inbox = start(loop, Health.READY)

    assert serve_one(loop, inbox, 40, 5).error is None
    stats = loop.stats()
    assert stats.health is Health.READY
    assert {one.program for one in stats.start_up.programs} == COVERING
    assert (stats.num_programs, stats.num_programs_total) == (6, 12)
    assert {one.num_rows for one in loop.steps()} == {16}

    beside = make_request(100, 600, arrival_s=time.monotonic())
    loop.submit(beside)
    gate.is_open.set()
    assert loop.wait_until(Health.WARM, 200.0)
    inbox.wait_for(beside)
    num_steps = loop.stats().num_steps
    assert serve_one(loop, inbox, 40, 5).error is None
    stats = loop.stats()
    assert stats.num_programs == stats.num_programs_total == 12
    assert stats.num_compiles_after_warmup == 0
    found = stats.start_up
    assert found.warm_s is not None and found.ready_s is not None
    assert found.warm_s > found.ready_s > found.covering_s
    buckets = {(one.num_rows, one.num_blocks) for one in loop.steps(num_steps)}
    assert buckets == {(8, 2), (8, 0)}, "the finer buckets are in use"
    loop.stop()


def test_a_turn_beside_requests_is_followed_by_time_for_them(
    config: EngineConfig,
) -> None:
    warm_up = build_warm_up(config)
    warm_up.cover()
    assert not warm_up.is_due(is_idle=True), "nothing is compiled yet"
    news = threading.Semaphore(0)
    warm_up.start(news.release)
    assert news.acquire(timeout=120.0)
    assert warm_up.is_due(is_idle=False)
    start_s = time.perf_counter()
    warm_up.turn(is_idle=False)
    spent_s = time.perf_counter() - start_s
    assert warm_up.is_due(is_idle=True), "there is more to run"
    assert warm_up._not_before_s - start_s > 3 * spent_s
    warm_up.stop()


def test_a_compilation_that_fails_is_a_failed_engine(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = build_loop(config)
    gate = Gate(loop._engine, monkeypatch)

    def fail(*_: object, **__: object) -> None:
        raise SystemExit("the compiler is gone")

    inbox = start(loop, Health.READY)
    gate.compile = fail
    request = make_request(50, 1900, arrival_s=time.monotonic())
    loop.submit(request)
    gate.is_open.set()
    inbox.wait_for(request)
    event = inbox.events[request.request_id][-1]
    assert event.error is not None and "the compiler is gone" in event.error
    assert loop.health is Health.FAILED
    assert not loop.wait_until(Health.WARM, 5.0)
    loop.stop()


def test_no_compilation_begins_while_requests_are_drained(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = build_loop(config)
    gate = Gate(loop._engine, monkeypatch)
    inbox = start(loop, Health.READY)
    request = make_request(50, 300, arrival_s=time.monotonic())
    loop.submit(request)
    assert gate.is_reached.wait(120.0)
    drained = threading.Thread(target=loop.drain, args=(120.0,))
    drained.start()
    while loop.health is not Health.DRAINING or not loop.warm_up._stopping.is_set():
        time.sleep(1e-3)
    gate.is_open.set()
    drained.join()
    inbox.wait_for(request)
    assert inbox.events[request.request_id][-1].error is None
    assert loop.stats().num_programs == 6
    loop.stop()


def test_what_could_not_be_kept_is_an_error(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_up = build_warm_up(config)
    warm_up.run()
    warm_up.check_kept()
    reports = warm_up._engine.programs.reports
    whole = reports[0]
    reports[0] = dataclasses.replace(whole, executable_bytes=None)
    with pytest.raises(OSError, match="1 of 12 programs could not be kept"):
        warm_up.check_kept()

    unlink_times(config)
    warm_up = build_warm_up(config)
    monkeypatch.setattr(pathlib.Path, "replace", refuse)
    warm_up.run()
    with pytest.raises(OSError, match="step times could not be kept"):
        warm_up.check_kept()


def refuse(draft: pathlib.Path, path: pathlib.Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_steps_are_recorded_with_the_buckets_they_ran_in(
    config: EngineConfig, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "steps.log"
    classes = [ServiceClass(name="chat", ttft_s=1.0, tbt_s=0.05)]
    loop = build_loop(dataclasses.replace(config, step_log=path), classes)
    inbox = start(loop, Health.WARM)
    serve_one(loop, inbox, 50, 5)
    loop.stop()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    _, first, *_, last = [line for line in lines if isinstance(line, dict)]
    assert first["buckets"]["row_edges"] == [16] and first["step_times"] is None
    assert last["buckets"]["row_edges"] == [8, 16] and last["step_times"]["no_pages_s"]
    chat = {"name": "chat", "ttft_s": 1.0, "tbt_s": 0.05}
    assert last["service_classes"] == [chat]
    assert len([line for line in lines if isinstance(line, list)]) == 5


def test_a_warm_start_measures_nothing_and_shows_how_far_it_is(
    config: EngineConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cold: list[str] = []
    warm: list[str] = []
    build_warm_up(config, Progress(cold.append)).run()
    warm_up = build_warm_up(config, Progress(warm.append))
    monkeypatch.setattr(warm_up._engine, "timed_pass", None)
    warm_up.run()
    assert {one.source for one in warm_up.start_up().programs} == {"stored"}
    for lines in (cold, warm):
        assert lines[0] == "loading model toy"
        assert any("loading them: 12 of 12 (" in line for line in lines)
        assert lines[-1].startswith("choosing the predictor")
    assert any(line.startswith("timing programs: ") for line in cold)
    assert not any("timing programs" in line for line in warm)
    (times,) = pathlib.Path(config.compile_cache_dir).rglob("step_times_*.json")
    times.write_text("{broken")
    assert not build_warm_up(config)._is_timed
    assert "unreadable" in caplog.text


@pytest.mark.parametrize(("compile_s", "num_timed"), [(1000.0, 7), (-1000.0, 0)])
def test_timing_ends_with_its_time_or_when_compiling_took_less(
    compile_s: float,
    num_timed: int,
    config: EngineConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = dataclasses.replace(config, warm_up_timing_s=14.0)
    lines: list[str] = []
    progress, clock = Progress(lines.append), ManualClock()
    progress.start_s -= 5000.0
    warm_up = build_warm_up(config, progress)
    watch = types.SimpleNamespace(monotonic=clock.now_s, perf_counter=time.perf_counter)
    monkeypatch.setattr("jserve.engine.warm_up.time", watch)
    warm_up._engine.programs.wall_s += compile_s
    timed: list[Bucket] = []

    def timed_pass(buckets: Sequence[Bucket], repeats: int) -> Iterator[StepSample]:
        timed.extend(buckets)
        clock.advance(1.0)
        row = uniform_features(buckets[0], decode_pages=1, block_pages=1, page_size=128)
        yield StepSample(row, 0.01)

    monkeypatch.setattr(warm_up._engine, "timed_pass", timed_pass)
    warm_up.run()
    assert warm_up.serving is not None
    start_up = warm_up.start_up()
    assert start_up.ready_s is not None and start_up.ready_s > 5000.0
    assert start_up.covering_s < 2000.0, "loading is no part of compiling"
    assert any(f"timed {num_timed} of 30 in the" in line for line in lines)
    rough, rest = timed[:6], timed[6:]
    assert set(rough) == set(warm_up._plan.final.buckets)
    assert len(rest) == num_timed
    covering = set(warm_up._plan.covering.buckets)
    assert not rest or (set(rest[:2]) == covering and rest[6] == rest[0])


def test_a_drain_while_nothing_is_covered_ends_warm_up(config: EngineConfig) -> None:
    loop = build_loop(config)
    assert loop._scheduler.buckets == loop.warm_up._plan.covering
    assert loop.drain(0.0)
    loop.start()
    loop.stop()
    assert loop.health is Health.DRAINING
    assert loop.stats().num_programs == 0
