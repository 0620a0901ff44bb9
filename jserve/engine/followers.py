"""Several processes that run one model: the first plans, the others follow.

A program over the devices of several processes runs once each of them has enqueued it,
and all must enqueue the same programs in the same order. So the first process, the
leader, sends each step's arguments to the others before it enqueues them itself; nobody
else schedules, samples or serves.

They talk by `multiprocessing.connection`, one TCP connection for each follower: it is
in the standard library, keeps order and the bounds of messages, and admits only who
knows the key, which JAX's own service hands out. A collective could not say which
process is missing, since it would wait for it, too; JAX's key-value store is polled.

The leader sends a beat every two seconds. The thread of a follower that enqueues steps
answers each message, beats too. Who hears nothing for 15 s, or finds the connection
closed, takes the other one for lost: it was stopped, or a step of it hangs. Nothing can
be computed without one of them: all end with `LOST`, and what started them starts them
again.
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
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jax.errors import JaxRuntimeError

from jserve.engine.packing import Packed
from jserve_sched.buckets.table import Bucket

LOST = os.EX_SOFTWARE  # 70, as when an engine fails
_LOG = logging.getLogger("jserve")
_BEAT_S = 2.0
SILENT_S = 15.0
_MEETING_S = 300.0
_END_S = 3.0
_KEY = "jserve/leader"
WARM, STOP, BEAT = "warm", "stop", "beat"


class LostError(RuntimeError):
    """One of the processes that share the model is lost."""


def reason_of(error: BaseException) -> str:
    """Returns why the engine failed: XLA names a lost process by its address alone."""
    if isinstance(error, JaxRuntimeError) and jax.process_count() > 1:
        return "a process that shares the model was lost"
    return str(error) or repr(error)


class Compile(NamedTuple):
    """The programs of these buckets are needed."""

    buckets: Sequence[Bucket]


class Run(NamedTuple):
    """A step; see `Engine.run`."""

    bucket: Bucket
    packed: Packed
    made_up: np.ndarray | None


class Draw(NamedTuple):
    """The head of a step; see `Engine.draw`."""

    packed: Packed


class Leader:
    """The first process's connections to the others.

    A follower's answer is the number of jobs that it has done.

    Attributes:
      lost: Who is lost and why; "" while nobody is.
      on_lost: Called once, in any thread, with `lost`; ends the process unless set.
    """

    def __init__(
        self, followers: Mapping[str, Connection], *, silent_s: float = SILENT_S
    ):
        """Watches followers, by the names that messages give them."""
        self.on_lost: Callable[[str], object] = lambda message: leave()
        self.lost = ""
        self._names = {one: name for name, one in followers.items()}
        self._silent_s = silent_s
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._num_jobs = 0
        self._num_done = dict.fromkeys(self._names, 0)
        self._is_stopping = False
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, message: object) -> None:
        """Sends a message to all followers.

        Raises:
          LostError: If one of them is lost.
        """
        content = pickle.dumps(message)
        with self._sending:
            for one in self._names:
                try:
                    one.send_bytes(content)
                except OSError:
                    self._lose(one, "has ended")
        if self.lost:
            raise LostError(self.lost)

    def begin(self, job: object) -> Callable[[], None]:
        """Sends what takes long; returns a function that waits until all have done it.

        That ends early after `stop`. Either raises LostError if a follower is lost.
        """
        self._num_jobs += 1
        count = self._num_jobs
        self.send(job)

        def is_over() -> bool:
            is_done = min(self._num_done.values()) >= count
            return is_done or self._is_stopping or self.lost != ""

        def wait_for_all() -> None:
            with self._changed:
                self._changed.wait_for(is_over)
            if self.lost:
                raise LostError(self.lost)

        return wait_for_all

    def stop(self) -> None:
        """Lets the followers end, and waits a little until they have."""
        with self._changed:
            if self.lost or self._is_stopping:
                return
            self._is_stopping = True
            self._changed.notify_all()
        self.send(STOP)
        self._watcher.join(_END_S)

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
                time.sleep(_BEAT_S)

    def _watch(self) -> None:
        """Hears followers until all have ended, or one is lost."""
        round_s = min(1.0, self._silent_s / 4)
        # Seconds that this process has watched, without those in which it was stopped.
        watched_s = 0.0
        heard_s = dict.fromkeys(self._names, 0.0)
        while heard_s and not self.lost:
            begin_s = time.monotonic()
            ready = wait(list(heard_s), timeout=round_s)
            watched_s += min(time.monotonic() - begin_s, round_s)
            for one in list(heard_s):
                try:
                    if one in ready:
                        num_done = one.recv()
                        heard_s[one] = watched_s
                        with self._changed:
                            self._num_done[one] = num_done
                            self._changed.notify_all()
                except (EOFError, OSError):
                    del heard_s[one]
                    self._lose(one, "has ended")
                    continue
                if watched_s - heard_s[one] > self._silent_s:
                    self._lose(one, f"has been silent for {self._silent_s:g} s")


def meet_followers() -> Leader:
    """Returns the leader of the processes that JAX knows, once all are connected.

    It listens on all addresses, as JAX's own service: a host's name may mean itself.
    """
    key = secrets.token_hex(32)
    service, _ = _service()
    followers = dict[str, Connection]()
    with Listener(("", 0), authkey=key.encode()) as listener:
        service.key_value_set(_KEY, f"{key} {listener.address[1]}")
        while len(followers) < jax.process_count() - 1:
            try:
                one = listener.accept()
                name = one.recv()
            except (AuthenticationError, EOFError, ConnectionError):
                continue  # a stranger
            # A step's arguments would else wait for the answer to those before.
            with socket.fromfd(one.fileno(), socket.AF_INET, socket.SOCK_STREAM) as it:
                it.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            followers[name] = one
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
    return state.client, state.coordinator_address.rpartition(":")[0]
