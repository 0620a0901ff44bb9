"""The servers a benchmark can run against; each is a context that ends it.

The one idea: whoever opens a target gets a warm client, and whatever happens
then, the engine is stopped or the server is asked to end (SIGTERM) and its exit
status is checked.
"""

import asyncio
import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import aiohttp

from jserve.config import EngineConfig
from jserve.config_flags import config_arguments
from jserve.events import Health
from jserve_tools.clients import Client
from jserve_tools.http_client import RequestForm, open_http_client
from jserve_tools.loop_client import LoopClient

if TYPE_CHECKING:
    from jserve.tokenizer import Tokenizer

_POLL_S = 0.2
_STOP_TIMEOUT_S = 60.0
_LOG_TAIL_LINES = 3


@contextlib.asynccontextmanager
async def engine_in_process(
    config: EngineConfig, *, start_timeout_s: float, profiles_host: bool
) -> AsyncIterator[Client]:
    """Starts an engine in this process and waits until it is warm.

    Args:
      config: of the engine.
      start_timeout_s: how long compiling may take.
      profiles_host: whether tokens are turned into text, to time that.

    Raises:
      RuntimeError: if it fails while it starts.
      TimeoutError: if it is not warm in time.
    """
    from jserve.build import build_loop  # loads JAX

    loop = await asyncio.to_thread(build_loop, config)
    tokenizer = functools.cache(functools.partial(_tokenizer, config))  # if wanted
    if profiles_host:
        tokenizer()  # now, while nothing is timed
    client = LoopClient(
        loop,
        detokeniser=(
            (lambda: tokenizer().detokenizer(()).step) if profiles_host else None
        ),
        eos_token_ids=lambda: tokenizer().eos_token_ids,
    )
    loop.start()
    try:
        if not await asyncio.to_thread(loop.wait_until, Health.WARM, start_timeout_s):
            if loop.health is Health.FAILED:
                raise RuntimeError("the engine failed while it started: see its log")
            raise TimeoutError(f"the engine is not warm after {start_timeout_s:g} s")
        yield client
    finally:
        await asyncio.to_thread(loop.stop)


def _tokenizer(config: EngineConfig) -> "Tokenizer":
    from jserve.tokenizer import load_tokenizer

    folder = pathlib.Path(config.model).expanduser()
    return load_tokenizer(folder if folder.is_dir() else None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _log_tail(log: pathlib.Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return f"{log} ends: " + " | ".join(lines[-_LOG_TAIL_LINES:])


async def _health(session: aiohttp.ClientSession, url: str) -> str:
    """Returns "no", "ready", "warm" or "failed"; one that tells no more is warm."""
    try:
        async with session.get(f"{url}/health") as response:
            if response.status == 404:
                return "warm"
            is_ready = response.status == 200
            try:
                body = await response.json(content_type=None)
            except ValueError:
                body = None
    except (aiohttp.ClientError, OSError):
        return "no"
    body = body if isinstance(body, dict) else {}
    if body.get("status") == Health.FAILED.value:
        return "failed"
    if not is_ready:
        return "no"
    if body.get("warm") is False:
        return "ready"
    return "warm"


async def wait_until_warm(
    url: str, *, timeout_s: float, process: asyncio.subprocess.Process | None = None
) -> None:
    """Waits for a server's `/health`.

    Args:
      url: of the server.
      timeout_s: how long that may take.
      process: the server's, if it is ours; its end ends the wait.

    Raises:
      TimeoutError: if it is not warm in time.
      ConnectionError: if the process ended, or its engine failed.
    """
    end_s = asyncio.get_running_loop().time() + timeout_s
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=10)
    ) as session:
        while (health := await _health(session, url)) != "warm":
            if process is not None and process.returncode is not None:
                raise ConnectionError(f"the server ended with {process.returncode}")
            if health == "failed":
                raise ConnectionError(f"the engine of {url} failed while it started")
            if asyncio.get_running_loop().time() > end_s:
                raise TimeoutError(
                    f"{url} is not warm after {timeout_s:g} s (ready: {health})"
                )
            await asyncio.sleep(_POLL_S)


@contextlib.asynccontextmanager
async def server_at(
    url: str, form: RequestForm, *, start_timeout_s: float
) -> AsyncIterator[Client]:
    """Connects to a running server and waits until it is warm."""
    url = url.rstrip("/").removesuffix("/v1")
    await wait_until_warm(url, timeout_s=start_timeout_s)
    async with open_http_client(url, form) as client:
        yield client


@contextlib.asynccontextmanager
async def launched_server(
    config: EngineConfig,
    form: RequestForm,
    *,
    log: pathlib.Path,
    start_timeout_s: float,
    command: Sequence[str] = (sys.executable, "-m", "jserve.cli"),
) -> AsyncIterator[Client]:
    """Starts a server program of our own, and stops it.

    Args:
      config: of its engine.
      form: how requests are written.
      log: the file that gets its output.
      start_timeout_s: how long compiling may take.
      command: what to run; port and engine flags are added.

    Raises:
      ConnectionError: if it ends before its time, or its engine fails.
      TimeoutError: if it is not warm in time, or does not stop.
      RuntimeError: if it ends with a status other than 0.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ["--host=127.0.0.1", f"--port={port}", *config_arguments(config)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches this program, which then stops it.
        process = await asyncio.create_subprocess_exec(
            *command,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    is_well = False
    try:
        try:
            await wait_until_warm(url, timeout_s=start_timeout_s, process=process)
            async with open_http_client(url, form) as client:
                yield client
            is_well = process.returncode is None
        except ConnectionError as error:
            raise ConnectionError(f"{error}; {_log_tail(log)}") from None
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {_log_tail(log)}") from None
    finally:
        status = await _stop(process)
    if not is_well or status != 0:
        raise RuntimeError(
            f"the server ended with status {status}, not 0; {_log_tail(log)}"
        )


async def _stop(process: asyncio.subprocess.Process) -> int:
    """Asks the server to end, insists after a while, and returns its status."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        return await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        return await process.wait()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A server that can be started, or is there; more than once if it must be.

    Attributes:
      name: for people.
      config: of an engine of our own; None for a running server.
      opener: starts or finds the server of a config.
    """

    name: str
    config: EngineConfig | None
    opener: Callable[[EngineConfig | None], AbstractAsyncContextManager[Client]]

    def open(
        self, *, cache_dir: pathlib.Path | None = None
    ) -> AbstractAsyncContextManager[Client]:
        """Returns the context in which it serves.

        Args:
          cache_dir: where an engine of our own keeps compiled programs, in place of
            what its config says.
        """
        config = self.config
        if cache_dir is not None:
            assert config is not None
            config = dataclasses.replace(config, compile_cache_dir=str(cache_dir))
        return self.opener(config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Servers:
    """What to run against.

    Attributes:
      url: a running server; "" for engines of our own.
      is_launched: whether those are server processes, not engines in this process.
      configs: one for each engine of our own.
      form: how HTTP requests are written.
      start_timeout_s: how long a server may take to be warm.
      profiles_host: whether steps are broken down; tokens of engines in process are
        turned into text then, to time that.
      measures_warm_start: whether the engine of each bucket strategy is started twice:
        with an empty compile cache, then with what that start left in it.
    """

    url: str = ""
    is_launched: bool = False
    configs: Sequence[EngineConfig] = ()
    form: RequestForm = dataclasses.field(default_factory=RequestForm)
    start_timeout_s: float = 600.0
    profiles_host: bool = False
    measures_warm_start: bool = False

    def targets(self, output: pathlib.Path) -> Iterator[Target]:
        """Yields each server; those of our own write logs in the folder `output`."""
        if self.url:
            yield Target(
                name=f"server at {self.url}",
                config=None,
                opener=lambda _: server_at(
                    self.url, self.form, start_timeout_s=self.start_timeout_s
                ),
            )
            return
        for config in self.configs:
            name = f"{config.policy}-{config.bucket_strategy}"
            if self.is_launched:
                log = output / f"server-{re.sub(r'[^a-z0-9_.-]+', '_', name)}.log"
                yield Target(
                    name=f"server with {name}, log in {log}",
                    config=config,
                    opener=functools.partial(self._launched, log),
                )
            else:
                yield Target(
                    name=f"engine with {name} in process",
                    config=config,
                    opener=self._in_process,
                )

    def _launched(
        self, log: pathlib.Path, config: EngineConfig | None
    ) -> AbstractAsyncContextManager[Client]:
        assert config is not None
        return launched_server(
            config, self.form, log=log, start_timeout_s=self.start_timeout_s
        )

    def _in_process(
        self, config: EngineConfig | None
    ) -> AbstractAsyncContextManager[Client]:
        assert config is not None
        return engine_in_process(
            config,
            start_timeout_s=self.start_timeout_s,
            profiles_host=self.profiles_host,
        )
