import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jserve.config import EngineConfig
from jserve.records.events import Health
from jserve_tools.measuring.config import BenchConfig, ServersConfig
from jserve_tools.measuring.targets import (
    launched_server,
    open_server,
    server_at,
)
from jserve_tools.reporting.config import ReportConfig
from tests.fake_loop import FakeLoop
from tests.fake_server import COMMAND, serve_fake
from tests.programs import SOURCES

FCFS = EngineConfig(policy="fcfs")


@pytest.fixture(autouse=True)
def sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", SOURCES)


def launch(folder: Path, *arguments: str, command: Sequence[str] = COMMAND):
    return launched_server(
        FCFS,
        log=folder / "new" / "log",
        timeout_s=30,
        command=(*command, *arguments),
    )


async def open_and_close(server) -> dict:
    async with server as client:
        return dict(await client.facts())


@pytest.mark.parametrize("error", [None, KeyError("mine")])
def test_a_launched_server_gets_its_flags_and_is_stopped(
    tmp_path: Path, error: Exception | None
) -> None:
    found: dict = {}

    async def go() -> None:
        async with launch(tmp_path) as client:
            found.update(await client.facts())
            if error is not None:
                raise error

    with pytest.raises(KeyError) if error else contextlib.nullcontext():
        asyncio.run(go())
    assert found["engine"]["policy"] == "fcfs"
    assert (tmp_path / "new" / "log").exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(found["url"].rsplit(":", 1)[1])))


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ("--dies", ConnectionError, r"ended with 3; .*log ends: no such model"),
        ("--exit_status=5", RuntimeError, "ended with status 5, not 0"),
        ("--fails", ConnectionError, r"failed while .*; .*log ends: .*memory"),
    ],
)
def test_a_launched_server_that_goes_wrong_is_an_error(
    tmp_path: Path, argument: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        asyncio.run(open_and_close(launch(tmp_path, argument)))


def test_a_server_that_is_never_warm_shows_its_log(tmp_path: Path) -> None:
    program = "import time; print('loading', flush=True); time.sleep(60)"
    server = launched_server(
        FCFS,
        log=tmp_path / "log",
        timeout_s=1,
        command=(sys.executable, "-c", program),
    )
    with pytest.raises(TimeoutError, match=r"not warm after 1 s.*log ends: loading"):
        asyncio.run(open_and_close(server))


@pytest.mark.parametrize(
    ("health", "error", "message"),
    [
        (Health.FAILED, ConnectionError, "failed while it started"),
        (Health.STARTING, TimeoutError, "not warm after 1 s, but starting"),
        (Health.READY, TimeoutError, "not warm after 1 s, but ready"),
    ],
)
def test_a_running_server_that_is_not_warm_is_waited_for(
    health: Health, error: type[Exception], message: str
) -> None:
    with serve_fake(FakeLoop(health=health)) as served:
        server = server_at(served.url, timeout_s=1)
        with pytest.raises(error, match=message):
            asyncio.run(open_and_close(server))


def test_a_running_server_and_one_where_nobody_listens() -> None:
    with serve_fake() as served:
        facts = asyncio.run(open_and_close(server_at(served.url + "/v1", timeout_s=5)))
    assert facts["served_model_name"] == "fake"
    start_s = time.monotonic()
    with pytest.raises(ConnectionError, match=r"nothing answers at .*refused"):
        asyncio.run(open_and_close(server_at(served.url, timeout_s=9)))
    assert time.monotonic() - start_s < 5


def test_the_kind_of_server_is_what_the_config_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, opener in (
        ("launched_server", lambda engine, extra, **more: more["log"].name),
        ("server_at", lambda url, extra, **more: url),
    ):
        monkeypatch.setattr(f"jserve_tools.measuring.targets.{name}", opener)
    report = ReportConfig(output=tmp_path)
    open_one: Any = open_server
    assert open_one(BenchConfig(report=report), FCFS) == "server-fcfs-pow2.log"
    assert open_one(BenchConfig(servers=ServersConfig(url="http://x")), None) == (
        "http://x"
    )
