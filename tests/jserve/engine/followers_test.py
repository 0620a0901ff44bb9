"""Who is lost is named, in time."""

import contextlib
import multiprocessing
import queue
import socket
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import jax
import pytest

from jserve import following
from jserve.engine import followers
from jserve.engine.followers import BEAT, STOP, Compile, Leader

SILENT_S = 0.6


@pytest.fixture
def lost() -> queue.SimpleQueue[str]:
    return queue.SimpleQueue()


@pytest.fixture
def leader_and_other(
    lost: queue.SimpleQueue[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[Leader, Connection]:
    """A leader of a follower that does all, and of one that only holds its end."""
    monkeypatch.setattr(followers, "_BEAT_S", SILENT_S / 10)
    monkeypatch.setattr(followers, "_END_S", 0.1)
    near, far = multiprocessing.Pipe()
    other_near, other_far = multiprocessing.Pipe()

    def follow() -> None:
        num_done = 0
        with contextlib.suppress(EOFError, OSError), far:
            for message in iter(far.recv, STOP):
                num_done += message == "job"
                far.send(num_done)

    threading.Thread(target=follow, daemon=True).start()
    leader = Leader({"process 1": near, "process 2": other_near}, silent_s=SILENT_S)
    leader.on_lost = lost.put
    return leader, other_far


def test_a_job_is_waited_for_until_all_have_done_it_or_end(
    leader_and_other: tuple[Leader, Connection], lost: queue.SimpleQueue[str]
) -> None:
    leader, other = leader_and_other
    waiting = threading.Thread(target=leader.begin("job"))
    waiting.start()
    other.send(0)
    waiting.join(SILENT_S / 2)
    assert waiting.is_alive()
    other.send(1)
    waiting.join(10.0)
    assert not waiting.is_alive()
    unfinished = threading.Thread(target=leader.begin("job"))
    unfinished.start()
    leader.stop()
    unfinished.join(10.0)
    assert not unfinished.is_alive()
    other.close()
    assert lost.empty()


def test_one_that_is_silent_is_lost(
    leader_and_other: tuple[Leader, Connection], lost: queue.SimpleQueue[str]
) -> None:
    leader, other = leader_and_other
    time.sleep(SILENT_S / 2)
    other.send(0)
    begin_s = time.monotonic()
    assert lost.get(timeout=10.0) == "process 2 has been silent for 0.6 s"
    assert time.monotonic() - begin_s > 0.9 * SILENT_S
    with pytest.raises(RuntimeError, match="process 2 has been silent"):
        leader.begin("job")


def test_one_that_ends_is_lost(
    leader_and_other: tuple[Leader, Connection], lost: queue.SimpleQueue[str]
) -> None:
    leader, other = leader_and_other
    wait = leader.begin("job")
    other.close()
    assert lost.get(timeout=10.0) == "process 2 has ended"
    with pytest.raises(RuntimeError, match="process 2 has ended"):
        wait()


def test_processes_meet_though_a_stranger_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()

    class Service:
        def key_value_set(self, name: str, value: str) -> None:
            self.value = value
            threading.Thread(target=self.connect, daemon=True).start()

        def blocking_key_value_get(self, name: str, timeout_ms: int) -> str:
            return self.value

        def connect(self) -> None:
            port = int(self.value.split()[1])
            socket.create_connection(("localhost", port)).close()
            self.connection = followers.meet_leader()  # which stays open
            while (message := self.connection.recv()) == BEAT:
                pass
            answers.put(message)

    service = Service()
    monkeypatch.setattr(followers, "_service", lambda: (service, "localhost"))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    has_delay = []

    def look(connections: dict[str, Connection]) -> Leader:
        for one in connections.values():
            with socket.fromfd(one.fileno(), socket.AF_INET, socket.SOCK_STREAM) as it:
                option = it.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                has_delay.append(not option)
        return Leader(connections)

    monkeypatch.setattr(followers, "Leader", look)
    leader = followers.meet_followers()
    leader.on_lost = len
    leader.send("step")
    assert answers.get(timeout=10.0) == "step"
    assert has_delay == [False]


class FakeEngine:
    """An engine that cannot compile."""

    def compile(self, buckets: Any) -> None:
        raise RuntimeError("no compiler")


def test_a_follower_that_cannot_compile_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    left: queue.SimpleQueue[int] = queue.SimpleQueue()

    def leave(status: int = followers.LOST) -> None:
        left.put(status)
        raise SystemExit

    monkeypatch.setattr(following, "leave", leave)
    monkeypatch.setattr(following, "_LAST_WORD_S", 0.0)
    near, far = multiprocessing.Pipe()
    follower = following.Follower(far)
    follower._engine = FakeEngine()  # type: ignore[assignment]
    running = threading.Thread(target=follower.run)
    running.start()
    near.send(Compile(()))
    assert left.get(timeout=10.0) == followers.LOST
    near.send(STOP)
    running.join(10.0)
    assert not running.is_alive() and left.empty()
