"""A process that follows: it runs what the first one sends, and nothing else."""

import collections
import concurrent.futures
import contextlib
import logging
import queue
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import jax

from jserve.build import build_engine
from jserve.config import EngineConfig
from jserve.engine.compile_cache import open_compile_cache
from jserve.engine.engine import Engine
from jserve.engine.followers import (
    BEAT,
    SILENT_S,
    STOP,
    WARM,
    Compile,
    Draw,
    Run,
    leave,
    meet_leader,
)

_LOG = logging.getLogger("jserve")
_MOST_IN_FLIGHT = 2
_POLL_S = 1.0
_LAST_WORD_S = 2.0  # for the other thread to find the leader lost


class Follower:
    """A follower's connection to the leader, and its engine.

    Steps are enqueued by the thread that answers messages, so that the leader hears of
    one that hangs; jobs, which take long, have another.
    """

    def __init__(self, connection: Connection):
        """Begins to listen."""
        self._connection = connection
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._num_done = 0
        self._engine: Engine
        threading.Thread(target=self._receive, daemon=True).start()

    def run(self) -> None:
        """Does what the leader sends until it ends."""
        jobs = concurrent.futures.ThreadPoolExecutor(1, "jobs")
        in_flight: collections.deque[tuple[Any, ...]] = collections.deque()
        num_steps = 0
        for message in iter(self._messages.get, STOP):
            if isinstance(message, Run):
                in_flight.append(self._engine.run(*message))
                num_steps += 1
                if len(in_flight) > _MOST_IN_FLIGHT:
                    jax.block_until_ready(in_flight.popleft())
            elif isinstance(message, Draw):
                in_flight[-1] = self._engine.draw(message.packed)
            elif message == WARM:
                self._engine.mark_warm()
            elif message != BEAT:
                jobs.submit(self._do, message)
            self._answer()
        if num_steps:
            late = self._engine.programs.num_compiles_after_warmup
            _LOG.info("followed %d steps, %d late compilations", num_steps, late)

    def _do(self, job: EngineConfig | Compile) -> None:
        try:
            if isinstance(job, Compile):
                self._engine.compile(job.buckets)
            else:
                store = open_compile_cache(job.compile_cache_dir)
                self._engine = build_engine(job, store)
        except BaseException as error:
            fail(error)
        self._num_done += 1
        self._answer()

    def _answer(self) -> None:
        # If the leader has ended, `_receive` finds out.
        with self._sending, contextlib.suppress(OSError):
            self._connection.send(self._num_done)

    def _receive(self) -> None:
        silent_s = 0.0  # without time in which this process was stopped
        message, reason = None, "the leader has ended"
        with contextlib.suppress(EOFError, OSError):
            while message != STOP:
                if self._connection.poll(_POLL_S):
                    silent_s = 0.0
                    message = self._connection.recv()
                    self._messages.put(message)
                elif (silent_s := silent_s + _POLL_S) >= SILENT_S:
                    reason = f"the leader has been silent for {SILENT_S:g} s"
                    break
        if message != STOP:
            _LOG.error("%s: this process ends", reason)
            leave()


def fail(error: BaseException) -> NoReturn:
    """Ends this process because of an error, which the leader finds out."""
    if isinstance(error, ValueError):  # of the model or a limit, here
        _LOG.error("%s", error)
        leave(1)
    _LOG.error("this process failed", exc_info=error)
    time.sleep(_LAST_WORD_S)
    leave()


def follow() -> NoReturn:
    """Follows the first process until it ends, as this one does then.

    A signal to end is for the leader, which finishes what it has begun.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        Follower(meet_leader()).run()
    except BaseException as error:
        fail(error)
    leave(0)
