import asyncio
import pathlib
import sys

import pytest

from jserve.config import EngineConfig
from jserve_tools.http_client import RequestForm
from jserve_tools.targets import Servers, launched_server, server_at, wait_until_warm

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
    names = [name for name, _ in servers.open_each(tmp_path)]
    assert [name.split(",")[0] for name in names] == [
        "server with fcfs-pow2",
        "server with edf-pow2",
    ]
    assert len(list(Servers(url="http://x", configs=configs).open_each(tmp_path))) == 1
