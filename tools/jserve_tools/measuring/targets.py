"""The servers that a benchmark measures, as context managers.

A context gives the client of a warm server. At its end a server process that was
launched is asked to end (SIGTERM), and its exit status is checked.
"""

import asyncio
import contextlib
import os
import pathlib
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp

from jserve.config import EngineConfig
from jserve.flags import config_arguments
from jserve.records.events import Health
from jserve_tools.load.clients import Client, open_client
from jserve_tools.measuring.config import BenchConfig

_SERVER = (sys.executable, "-m", "jserve")
_START_TIMEOUT_S = 3600.0  # a large model has many programs to compile
_POLL_S = 0.2
_STOP_TIMEOUT_S = 60.0
_CONNECT_S = 3.0  # after which an address without an answer is refused
_LOG_TAIL_LINES = 3


async def _health(session: aiohttp.ClientSession, url: str) -> Health:
    """Returns a server's health by /health; a server that states none is warm."""
    async with session.get(f"{url}/health") as response:
        try:
            return Health((await response.json(content_type=None))["status"])
        except (ValueError, KeyError, TypeError):
            is_well = response.status in (200, 404)
            return Health.WARM if is_well else Health.STARTING


@contextlib.asynccontextmanager
async def server_at(
    url: str,
    extra: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = _START_TIMEOUT_S,
    process: asyncio.subprocess.Process | None = None,
) -> AsyncIterator[Client]:
    """Connects to a server once it is warm.

    Args:
      process: Process of a launched server; if it ends, so does the wait.

    Raises:
      TimeoutError: If it is not warm in time.
      ConnectionError: If the process ended, its engine failed, or nothing answers at
        the URL of a server that was not launched here.
    """
    url = url.rstrip("/").removesuffix("/v1")
    now_s = asyncio.get_running_loop().time
    start_s = now_s()
    timeout = aiohttp.ClientTimeout(total=10, sock_connect=_CONNECT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while True:
            try:
                health = await _health(session, url)
            except (aiohttp.ClientError, OSError) as error:
                health = Health.STARTING
                if process is None and now_s() - start_s > _CONNECT_S:
                    errno = getattr(error, "errno", None)
                    fault = os.strerror(errno) if errno else repr(error)
                    raise ConnectionError(
                        f"nothing answers at {url} ({fault}): start a server there, or "
                        "leave out --url, and the benchmark starts one"
                    ) from None
            if health is Health.FAILED:
                raise ConnectionError(f"the engine of {url} failed while it started")
            if process is not None and process.returncode is not None:
                raise ConnectionError(f"the server ended with {process.returncode}")
            if health is Health.WARM:
                break
            if now_s() - start_s > timeout_s:
                raise TimeoutError(
                    f"{url} is not warm after {timeout_s:g} s, but {health.value}"
                )
            await asyncio.sleep(_POLL_S)
    async with open_client(url, extra) as client:
        yield client


async def _stop(process: asyncio.subprocess.Process) -> int:
    """Asks a process to end, kills it after a while, and returns its status."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        return await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        return await process.wait()


@contextlib.asynccontextmanager
async def launched_server(
    config: EngineConfig,
    extra: Mapping[str, Any] | None = None,
    *,
    log: pathlib.Path,
    timeout_s: float = _START_TIMEOUT_S,
    command: Sequence[str] = _SERVER,
) -> AsyncIterator[Client]:
    """Starts a jserve process, and stops it at the end; `log` gets its output.

    Raises:
      ConnectionError: If it ends too early, or its engine fails.
      TimeoutError: If it is not warm in time, or does not stop.
      RuntimeError: If it ends with a status other than 0.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        # In a new session: Ctrl-C reaches this program only, which then stops it.
        process = await asyncio.create_subprocess_exec(
            *(*command, "--host=127.0.0.1", f"--port={port}"),
            *config_arguments(config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output.fileno(),
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )

    def log_tail() -> str:
        lines = log.read_text(errors="replace").splitlines()
        return f"{log} ends: " + " | ".join(lines[-_LOG_TAIL_LINES:])

    url, is_well = f"http://127.0.0.1:{port}", False
    try:
        async with server_at(
            url, extra, timeout_s=timeout_s, process=process
        ) as client:
            yield client
        is_well = process.returncode is None
    except (ConnectionError, TimeoutError) as error:
        raise type(error)(f"{error}; {log_tail()}") from None
    finally:
        status = await _stop(process)
    if not is_well or status != 0:
        raise RuntimeError(
            f"the server ended with status {status}, not 0; {log_tail()}"
        )


def open_server(
    config: BenchConfig, engine: EngineConfig | None
) -> AbstractAsyncContextManager[Client]:
    """Returns the context of the process to start, or of the URL's server."""
    if engine is None:
        return server_at(config.servers.url, config.servers.extra)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", engine_name(engine))
    log = config.report.output / f"server-{name}.log"
    return launched_server(engine, config.servers.extra, log=log)


def engine_name(engine: EngineConfig) -> str:
    """Returns an engine's name, which no other engine of the benchmark has."""
    return f"{engine.policy}-{engine.strategy}"
