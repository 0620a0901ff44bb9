"""Listens, serves, and goes when told to.

The one idea: on the first SIGTERM or SIGINT the socket stays open. New requests
hear 503 while running ones finish; only then does the server close, and the
process ends with 0. A second SIGINT ends it at once.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from jserve.config import ServerConfig
from jserve.server.port import EnginePort

_LOGGER = logging.getLogger(__name__)
_FLUSH_TIMEOUT_S = 5  # for connections to take their last bytes
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its signal handlers, which would kill after the shutdown."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(config: ServerConfig) -> socket.socket:
    """Returns a socket bound to the configured address; port 0 takes a free one.

    Raises:
      OSError: if the address cannot be had.
    """
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


def url_of(listener: socket.socket) -> str:
    """Returns the URL that a bound socket answers under."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: FastAPI) -> uvicorn.Server:
    """Returns a server for `app` that leaves signals and logging alone."""
    return _Uvicorn(
        uvicorn.Config(
            app,
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_FLUSH_TIMEOUT_S,
        )
    )


async def _serve(
    app: FastAPI, engine: EnginePort, config: ServerConfig, listener: socket.socket
) -> None:
    server = make_server(app)
    leaving = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if leaving.is_set() and number is signal.SIGINT:
            _LOGGER.warning("interrupted again: leaving at once")
            os._exit(128 + number)
        leaving.set()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    told = asyncio.create_task(leaving.wait())
    try:
        await asyncio.wait({serving, told}, return_when=asyncio.FIRST_COMPLETED)
        if leaving.is_set() and not serving.done():
            _LOGGER.info(
                "draining: new requests are refused, running ones have %g s",
                config.drain_timeout_s,
            )
            is_empty = await asyncio.to_thread(engine.drain, config.drain_timeout_s)
            if not is_empty:
                _LOGGER.warning("drain timed out: the remaining requests were cut off")
            server.should_exit = True
        await serving
    finally:
        told.cancel()


def serve(
    app: FastAPI, engine: EnginePort, config: ServerConfig, listener: socket.socket
) -> None:
    """Serves until a signal; returns once everything has been drained.

    Where the engine cannot be stopped, since it compiles, the process ends here.

    Args:
      app: from `build_app`.
      engine: the one `app` serves.
      config: of the server.
      listener: from `bind`.
    """
    runner = asyncio.Runner(loop_factory=uvicorn.Config(app).get_loop_factory())
    with runner:
        runner.run(_serve(app, engine, config, listener))
    if not app.state.has_stopped:
        # A compiler cannot be interrupted, and Python would wait for its threads.
        _LOGGER.warning("leaving while the engine still compiles")
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
