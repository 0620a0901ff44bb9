"""Listens, serves, and ends on a signal or when the engine fails.

On the first SIGTERM or SIGINT the socket stays open: new requests are answered with 503
while running ones finish; those that have not ended in time get an error. Then the
server closes, and the process ends with status 0. A second signal ends it at once. If
the engine has failed, all clients get an error, and the process ends with another
status, so that its supervisor starts it again. What still runs 15 s after the drain is
ended by force, with status 1 and a print of where it hung.
"""

import asyncio
import contextlib
import errno
import faulthandler
import functools
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from jserve.engine.interface import ServingEngine
from jserve.records.events import Health
from jserve.server.http_limits import BoundedHttp, ConnectionLimits
from jserve.server_config import ServerConfig

FAILED_STATUS = os.EX_SOFTWARE  # 70; mistakes of the user end with 1 or 2

_LOGGER = logging.getLogger(__name__)
_MAX_CONNECTIONS = 4096
_WATCH_S = 0.1
_FORCE_S = 15.0  # after the drain, and after a failure
_TEARDOWN_S = 60.0  # of the interpreter, once all clients have their answers
_FAILED_GRACE_S = 1.0  # for streams to get the error, and /health to be read
_FLUSH_TIMEOUT_S = 5  # for connections to receive their last bytes
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its signal handlers, which would end the process afterwards."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(config: ServerConfig) -> socket.socket:
    """Returns a socket bound to the configured address; port 0 takes a free one.

    Raises:
      OSError: If the address cannot be bound.
    """
    if config.unix_socket is not None:
        family, kind, protocol = socket.AF_UNIX, socket.SOCK_STREAM, 0
        address: Any = str(config.unix_socket)
        with socket.socket(family) as probe:
            is_left = probe.connect_ex(address) == errno.ECONNREFUSED
        if is_left and config.unix_socket.is_socket():  # of a server that has ended
            config.unix_socket.unlink()
    else:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket, *, is_tls: bool = False) -> str:
    """Returns the URL of a bound socket."""
    if listener.family is socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if is_tls else 'http'}://{host}:{port}"


def _max_connections(config: ServerConfig) -> int:
    """Returns the most connections; raises the limit of descriptors if it can."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    num_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return config.max_connections or min(num_files // 3, _MAX_CONNECTIONS)


def make_server(app: FastAPI, config: ServerConfig) -> uvicorn.Server:
    """Returns a server for `app` that does not change signals and logging."""
    return _Uvicorn(
        uvicorn.Config(
            app,
            http=functools.partial(  # type: ignore[arg-type]
                BoundedHttp,
                limits=ConnectionLimits(
                    _max_connections(config),
                    config.head_timeout_s,
                    config.write_timeout_s,
                ),
            ),
            ssl_certfile=config.tls_cert,
            ssl_keyfile=config.tls_key,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=config.keep_alive_s,
            timeout_graceful_shutdown=_FLUSH_TIMEOUT_S,
        )
    )


async def _wait_for_failure(engine: ServingEngine) -> None:
    while engine.health is not Health.FAILED:
        engine.check_progress()
        await asyncio.sleep(_WATCH_S)


async def _serve(
    app: FastAPI, engine: ServingEngine, config: ServerConfig, listener: socket.socket
) -> int:
    server = make_server(app, config)
    leaving = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if leaving.is_set():
            _LOGGER.warning("%s once more: leaving at once", number.name)
            os._exit(128 + number)
        leaving.set()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    signalled = asyncio.create_task(leaving.wait())
    failed = asyncio.create_task(_wait_for_failure(engine))
    try:
        await asyncio.wait(
            {serving, signalled, failed}, return_when=asyncio.FIRST_COMPLETED
        )
        is_signalled = leaving.is_set()
        timeout_s = config.drain_timeout_s if is_signalled else 0.0
        # Ends the process whatever it does then, even with the interpreter's lock held.
        faulthandler.dump_traceback_later(timeout_s + _FORCE_S, exit=True)
        if is_signalled:
            _LOGGER.info(
                "draining: new requests are refused, running ones have %g s", timeout_s
            )
            if not await asyncio.to_thread(engine.drain, timeout_s):
                _LOGGER.warning("drain timed out: the remaining requests were cut off")
        elif failed.done():
            _LOGGER.error("leaving in %g s: the engine has failed", _FAILED_GRACE_S)
            await asyncio.wait({serving}, timeout=_FAILED_GRACE_S)
        server.should_exit = True
        await serving
    finally:
        signalled.cancel()
        failed.cancel()
    has_failed = engine.health is Health.FAILED
    return 0 if is_signalled and not has_failed else FAILED_STATUS


def serve(
    app: FastAPI, engine: ServingEngine, config: ServerConfig, listener: socket.socket
) -> int:
    """Serves until a signal, or until the engine fails.

    If the engine cannot be stopped, as in a compiler, the process ends here.

    Returns:
      The exit status of the process: 0 after a signal, `FAILED_STATUS` if the server
      ended for any other reason.
    """
    # Without `log_config=None` uvicorn would configure logging for the whole process.
    loop_factory = uvicorn.Config(app, log_config=None).get_loop_factory()
    runner = asyncio.Runner(loop_factory=loop_factory)
    with runner:
        status = runner.run(_serve(app, engine, config, listener))
    faulthandler.dump_traceback_later(_TEARDOWN_S, exit=True)
    if not app.state.has_stopped:
        # Neither a compiler nor a device that hangs can be interrupted, and Python
        # would wait for them.
        _LOGGER.warning("leaving while the engine is still busy")
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    return status
