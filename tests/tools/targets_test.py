import asyncio
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

import pytest

from jserve.config import EngineConfig
from jserve.events import Health, TokenEvent
from jserve_tools.http_client import RequestForm
from jserve_tools.targets import (
    Servers,
    engine_in_process,
    launched_server,
    server_at,
    wait_until_warm,
)

FORM = RequestForm()


def launch(fake_server_file: pathlib.Path, log: pathlib.Path, *arguments: str):
    return launched_server(
        EngineConfig(policy="fcfs"),
        FORM,
        log=log,
        start_timeout_s=20,
        command=(sys.executable, str(fake_server_file), *arguments),
    )


def test_a_launched_server_gets_its_flags_and_is_stopped(
    fake_server_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    async def go() -> str:
        async with launch(fake_server_file, tmp_path / "new" / "log") as client:
            facts = await client.facts()
            assert facts["engine"]["policy"] == "fcfs"
            return str(facts["url"])

    url = asyncio.run(go())
    with pytest.raises(TimeoutError, match="not warm"):
        asyncio.run(wait_until_warm(url, timeout_s=0.3))
    assert (tmp_path / "new" / "log").exists()


def test_a_server_that_ends_badly_is_an_error(
    fake_server_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    async def go(*arguments: str) -> None:
        async with launch(fake_server_file, tmp_path / "log", *arguments):
            pass

    with pytest.raises(ConnectionError, match=r"ended with 3; .*no such model"):
        asyncio.run(go("--dies"))
    with pytest.raises(RuntimeError, match="ended with status 5, not 0"):
        asyncio.run(go("--exit_status=5"))


def test_a_failed_engine_ends_the_wait_at_once(
    fake_server_file: pathlib.Path, fake_server, tmp_path: pathlib.Path
) -> None:
    async def launched() -> None:
        async with launch(fake_server_file, tmp_path / "log", "--fails"):
            pass

    async def running() -> None:
        async with fake_server.FakeServer(status="failed") as server:
            await wait_until_warm(server.url, timeout_s=20)

    start_s = time.monotonic()
    with pytest.raises(ConnectionError, match=r"failed while .*; .*log ends: .*memory"):
        asyncio.run(launched())
    with pytest.raises(ConnectionError, match="failed while it started"):
        asyncio.run(running())
    assert time.monotonic() - start_s < 15


def test_a_server_that_is_never_warm_shows_its_log(
    fake_server_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    program = "import time; print('loading', flush=True); time.sleep(60)"

    async def go() -> None:
        async with launched_server(
            EngineConfig(),
            FORM,
            log=tmp_path / "log",
            start_timeout_s=1,
            command=(sys.executable, "-c", program),
        ):
            pass

    with pytest.raises(TimeoutError, match=r"not warm after 1 s .*log ends: loading"):
        asyncio.run(go())


@pytest.mark.parametrize(
    ("health", "error", "message"),
    [
        (Health.FAILED, RuntimeError, "the engine failed while it started"),
        (Health.READY, TimeoutError, "not warm after 5 s"),
    ],
)
def test_an_engine_in_process_that_fails_says_so(
    monkeypatch: pytest.MonkeyPatch,
    health: Health,
    error: type[Exception],
    message: str,
) -> None:
    class ColdLoop:
        stopped = False

        def __init__(self) -> None:
            self.health = health

        def set_listener(self, publish: Callable[[Sequence[TokenEvent]], None]) -> None:
            pass

        def start(self) -> None:
            pass

        def wait_until(self, wanted: Health, timeout_s: float) -> bool:
            return False

        def stop(self) -> None:
            self.stopped = True

    loop = ColdLoop()
    monkeypatch.setattr("jserve.build.build_loop", lambda config: loop)

    async def go() -> None:
        async with engine_in_process(
            EngineConfig(), start_timeout_s=5, profiles_host=False
        ):
            pass

    with pytest.raises(error, match=message):
        asyncio.run(go())
    assert loop.stopped


def test_an_error_in_the_benchmark_stops_the_server(
    fake_server_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    urls: list[str] = []

    async def go() -> None:
        async with launch(fake_server_file, tmp_path / "log") as client:
            urls.append(str((await client.facts())["url"]))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(go())
    with pytest.raises(TimeoutError):
        asyncio.run(wait_until_warm(urls[0], timeout_s=0.3))


def test_a_running_server(fake_server) -> None:
    async def go() -> None:
        server = fake_server.FakeServer()
        async with (
            server,
            server_at(server.url + "/v1", FORM, start_timeout_s=5) as client,
        ):
            assert (await client.facts())["served_model_name"] == "fake"

    asyncio.run(go())


def test_each_config_gets_a_server_of_its_own(tmp_path: pathlib.Path) -> None:
    configs = [EngineConfig(policy=policy) for policy in ("fcfs", "edf")]
    servers = Servers(is_launched=True, configs=configs)
    names = [target.name for target in servers.targets(tmp_path)]
    assert [name.split(",")[0] for name in names] == [
        "server with fcfs-pow2",
        "server with edf-pow2",
    ]
    assert len(list(Servers(url="http://x", configs=configs).targets(tmp_path))) == 1
