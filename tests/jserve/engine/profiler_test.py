"""The profile of some steps: which, and that it is written whatever happens."""

import logging
import pathlib
import time

import jax
import pytest

from jserve.config import EngineConfig
from jserve.engine.profiler import Profiler
from jserve.records.events import Health
from tests.engine_harness import Inbox, build_toy_loop, start
from tests.fakes import make_request


def test_the_steps_of_a_range_are_traced_and_annotated(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(jax.profiler, "start_trace", calls.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    profiler = Profiler(range(2, 4), tmp_path)
    for step_id in range(6):
        with profiler.step(step_id) as annotation:  # launched while the last one runs
            calls.append((step_id, annotation is not None))
        profiler.end_step(step_id - 1)
    profiler.stop()
    steps = [(step_id, step_id in (2, 3)) for step_id in range(6)]
    assert calls == [*steps[:2], tmp_path, *steps[2:5], "stop", steps[5]]


def test_a_profile_that_cannot_start_is_one_warning(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    profiler = Profiler(range(2), tmp_path / "file")
    jax.profiler.start_trace(tmp_path)
    try:
        for step_id in range(2):
            with profiler.step(step_id):
                pass
        profiler.stop()
    finally:
        jax.profiler.stop_trace()
    (message,) = caplog.messages
    assert message.startswith("steps are not profiled: ")


def test_a_server_that_stops_in_between_writes_what_it_has(
    shared_programs: pathlib.Path,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "profile"
    loop = build_toy_loop(shared_programs, profile_steps="2:900", profile_dir=folder)
    inbox: Inbox = start(loop, Health.READY)
    request = make_request(50, 5, arrival_s=time.monotonic())
    with caplog.at_level(logging.INFO, logger="jserve"):
        loop.submit(request)
        inbox.wait_for(request)
        loop.stop()
    (trace,) = folder.glob("plugins/profile/*/*.xplane.pb")
    assert b"step_num" in trace.read_bytes()
    begun, ended = (one for one in caplog.messages if "profil" in one)
    assert begun == f"profiling steps 2 to 899 into {folder}"
    assert ended == f"the profile of steps is in {trace.parent}"


@pytest.mark.parametrize("steps", ["100", "7:7", "9:3", "-1:4", "0:1001", "1:2:3"])
def test_steps_that_are_not_a_range_are_refused(steps: str) -> None:
    with pytest.raises(ValueError, match=f"profile_steps='{steps}' is not a range"):
        EngineConfig(profile_steps=steps)
