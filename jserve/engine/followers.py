"""Several processes that run one model: the first plans, the others follow.

A program over the devices of several processes runs once each of them has enqueued it,
and all must enqueue the same programs in the same order. So the first process, the
leader, sends each step's arguments to the others before it enqueues them itself; nobody
else schedules, samples or serves.

They talk by `multiprocessing.connection`, one TCP connection for each follower: it is
in the standard library, keeps order and the bounds of messages, and admits only who
knows the key, which JAX's own service hands out. A collective could not say which
process is missing, since it would wait for it, too; JAX's key-value store is polled.

Each side sends a beat every two seconds. Who hears nothing for ten, or finds the
connection closed, takes the other one for lost; so does a leader whose step is not
taken for fifteen. Nothing can be computed without one of them: all end with `LOST`, and
what started them starts them again.
"""

import contextlib
import logging
import os
import pickle
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from jserve.engine.packing import Packed
from jserve_sched.buckets.table import Bucket

LOST = os.EX_SOFTWARE  # 70, as when an engine fails
_LOG = logging.getLogger("jserve")
BEAT_S = 2.0
SILENT_S = 10.0
_BEHIND_S = 15.0
_MEETING_S = 300.0
_END_S = 3.0
_KEY = "jserve/leader"


class LostError(RuntimeError):
    """One of the processes that share the model is lost."""


class Compile(NamedTuple):
    """The programs of these buckets are needed."""

    buckets: Sequence[Bucket]


class Run(NamedTuple):
    """A step; see `Engine.run`."""

    bucket: Bucket
    packed: Packed
    made_up: np.ndarray | None


class Report(NamedTuple):
    """What a follower has done so far."""

    num_taken: int  # messages
    num_done: int  # of those that take long: the settings, and each `Compile`


WARM, STOP, BEAT = "warm", "stop", "beat"


class Leader:
    """The first process's connections to the others.

    Attributes:
      lost: Who is lost and why; "" while nobody is.
      on_lost: Called once, in another thread, with `lost`.
    """

    def __init__(
        self,
        followers: Mapping[str, Connection],
        *,
        silent_s: float = SILENT_S,
        behind_s: float = _BEHIND_S,
    ):
        """Watches followers, by the names that messages give them."""
        self.on_lost: Callable[[str], object] = lambda message: None
        self._names = {one: name for name, one in followers.items()}
        self._silent_s, self._behind_s = silent_s, behind_s
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._num_sent = self._num_jobs = 0
        self._reports = dict.fromkeys(self._names, Report(0, 0))
        # Seconds that this process has watched, without those in which it was stopped.
        self._watched_s = 0.0
        self._heard_s = dict.fromkeys(self._names, 0.0)
        self._kept_up_s = dict.fromkeys(self._names, 0.0)
        self.lost = ""
        self._is_stopping = False
        for work in (self._beat, self._watch):
            threading.Thread(target=work, name="followers", daemon=True).start()

    def send(self, message: object) -> None:
        """Sends a message to all followers.

        Raises:
          LostError: If one of them is lost.
        """
        if self.lost:
            raise LostError(self.lost)
        content = pickle.dumps(message)
        with self._sending:
            self._num_sent += message is not BEAT
            for one in self._names:
                try:
                    one.send_bytes(content)
                except OSError:
                    self._lose(one, "has ended")

    def begin(self, job: object) -> Callable[[], None]:
        """Sends what takes long; returns a function that waits until all have done it.

        Either raises LostError if a follower is lost.
        """
        self._num_jobs += 1
        count = self._num_jobs
        self.send(job)

        def is_done() -> bool:
            return all(one.num_done >= count for one in self._reports.values())

        def wait_for_all() -> None:
            with self._changed:
                self._changed.wait_for(lambda: self.lost or is_done())
            if self.lost:
                raise LostError(self.lost)

        return wait_for_all

    def stop(self) -> None:
        """Lets the followers end, and waits a little until they have."""
        if self.lost or self._is_stopping:
            return
        self._is_stopping = True
        self.send(STOP)
        for one in self._names:
            with contextlib.suppress(EOFError, OSError):
                while one.poll(_END_S):
                    one.recv()

    def _lose(self, one: Connection, what: str) -> None:
        with self._changed:
            if self.lost or self._is_stopping:
                return
            self.lost = f"{self._names[one]} {what}"
            self._changed.notify_all()
        _LOG.error("%s: all processes end", self.lost)
        self.on_lost(self.lost)

    def _beat(self) -> None:
        with contextlib.suppress(LostError):
            while not self._is_stopping:
                self.send(BEAT)
                time.sleep(BEAT_S)

    def _watch(self) -> None:
        round_s = min(1.0, self._silent_s / 4)
        while not self.lost and not self._is_stopping:
            begin_s = time.monotonic()
            ready = wait(list(self._names), timeout=round_s)
            self._watched_s += min(time.monotonic() - begin_s, round_s)
            for one in self._names:
                try:
                    while one in ready and one.poll():
                        self._hear(one, one.recv())
                except (EOFError, OSError):
                    self._lose(one, "has ended")
                    return
            now_s = self._watched_s
            for one in self._names:
                if self._reports[one].num_taken >= self._num_sent:
                    self._kept_up_s[one] = now_s
                if now_s - self._heard_s[one] > self._silent_s:
                    self._lose(one, f"has been silent for {self._silent_s:g} s")
                elif now_s - self._kept_up_s[one] > self._behind_s:
                    self._lose(one, f"has not taken a step for {self._behind_s:g} s")

    def _hear(self, one: Connection, report: Report) -> None:
        self._heard_s[one] = self._watched_s
        if report.num_taken > self._reports[one].num_taken:
            self._kept_up_s[one] = self._heard_s[one]
        with self._changed:
            self._reports[one] = report
            self._changed.notify_all()


def meet_followers() -> Leader:
    """Returns the leader of the processes that JAX knows, once all are connected."""
    key = secrets.token_hex(32)
    service, host = _service()
    followers = {}
    with Listener((host, 0), authkey=key.encode()) as listener:
        service.key_value_set(_KEY, f"{key} {listener.address[1]}")
        for _ in range(1, jax.process_count()):
            one = listener.accept()
            followers[one.recv()] = one
    return Leader(followers)


def meet_leader() -> Connection:
    """Returns the connection to the first process."""
    service, host = _service()
    found = service.blocking_key_value_get(_KEY, int(_MEETING_S * 1000))
    key, port = found.split()
    leader = Client((host, int(port)), authkey=key.encode())
    leader.send(f"process {jax.process_index()} on {socket.gethostname()}")
    return leader


def leave(status: int = LOST) -> NoReturn:
    """Ends this process, whatever its threads wait for.

    JAX's own end would wait for all processes, and abort this one if another is late.
    """
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def _service() -> tuple[Any, str]:
    """Returns JAX's key-value store, and the host of the first process."""
    from jax._src import distributed  # which has no public name

    state: Any = distributed.global_state
    return state.client, state.coordinator_address.rpartition(":")[0].strip("[]")
