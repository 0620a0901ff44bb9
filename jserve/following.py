"""A process that follows: it runs what the first one sends, and nothing else."""

import collections
import concurrent.futures
import logging
import queue
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import jax

from jserve.build import build_engine
from jserve.config import EngineConfig
from jserve.engine.compile_cache import open_compile_cache
from jserve.engine.engine import Engine
from jserve.engine.followers import (
    BEAT,
    BEAT_S,
    SILENT_S,
    STOP,
    WARM,
    Compile,
    Report,
    leave,
    meet_leader,
)
from jserve_sched.buckets.table import Bucket

_LOG = logging.getLogger("jserve")
_MOST_IN_FLIGHT = 2
_POLL_S = 1.0


class Follower:
    """A follower's connection to the leader, and what it has done."""

    def __init__(self, connection: Connection):
        """Begins to listen, and to report."""
        self._connection = connection
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._num_taken = self._num_done = 0
        self._is_over = False
        for work in (self._receive, self._beat):
            threading.Thread(target=work, name="leader", daemon=True).start()

    def next(self) -> Any:
        """Returns the next message, once there is one."""
        message = self._messages.get()
        self._num_taken += 1
        self._report()
        return message

    def has_done(self) -> None:
        """Reports that something which takes long is done."""
        self._num_done += 1
        self._report()

    def _report(self) -> None:
        try:
            with self._sending:
                self._connection.send(Report(self._num_taken, self._num_done))
        except OSError:
            self._leave("the leader has ended")

    def _beat(self) -> None:
        while not self._is_over:
            self._report()
            time.sleep(BEAT_S)

    def _receive(self) -> None:
        silent_s = 0.0  # without time in which this process was stopped
        try:
            while not self._is_over:
                if not self._connection.poll(_POLL_S):
                    silent_s += _POLL_S
                    if silent_s >= SILENT_S:
                        self._leave(f"the leader has been silent for {SILENT_S:g} s")
                    continue
                silent_s = 0.0
                message = self._connection.recv()
                self._is_over = message == STOP
                if message != BEAT:
                    self._messages.put(message)
        except (EOFError, OSError):
            self._leave("the leader has ended")

    def _leave(self, reason: str) -> None:
        """Ends the process, whatever its threads wait for."""
        if not self._is_over:
            _LOG.error("%s: this process ends", reason)
            leave()


def follow() -> None:
    """Follows the first process until it ends.

    A signal to end is for the leader, which finishes what it has begun.

    Raises:
      ValueError: If the model or a limit is invalid here.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    follower = Follower(meet_leader())
    config: EngineConfig = follower.next()
    store = open_compile_cache(config.compile_cache_dir)
    engine = build_engine(config, store)
    follower.has_done()
    num_steps = run_steps(follower, engine)
    num_compiles = engine.programs.num_compiles_after_warmup
    _LOG.info("followed %d steps, %d late compilations", num_steps, num_compiles)


def run_steps(follower: Follower, engine: Engine) -> int:
    """Runs the leader's steps until it ends; returns their number."""
    in_flight: collections.deque[tuple[jax.Array, ...]] = collections.deque()
    jobs: collections.deque[concurrent.futures.Future[None]] = collections.deque()
    num_steps = 0

    def compile_buckets(buckets: Sequence[Bucket]) -> None:
        engine.programs.compile(buckets)
        follower.has_done()

    with concurrent.futures.ThreadPoolExecutor(1, "compile") as pool:
        while (message := follower.next()) != STOP:
            if message == WARM:
                engine.programs.mark_warm()
            elif isinstance(message, Compile):
                jobs.append(pool.submit(compile_buckets, message.buckets))
            else:
                while jobs and message.bucket not in engine.programs.buckets:
                    jobs.popleft().result()
                in_flight.append(engine.run(*message))
                num_steps += 1
            if len(in_flight) > _MOST_IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
    return num_steps
