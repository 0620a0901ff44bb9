"""Who is lost is named, in time."""

import multiprocessing
import queue
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import pytest

from jserve.engine.followers import BEAT, Leader, Report

SILENT_S, BEHIND_S = 0.6, 0.9


def follow(connection: Connection, num_taken: Callable[[int], int]) -> None:
    """Reports five times a second, after every message from the leader."""
    received, num_done = 0, 0
    while True:
        try:
            while connection.poll():
                message = connection.recv()
                received += message != BEAT
                num_done += message == "job"
            connection.send(Report(num_taken(received), num_done))
        except OSError:
            return
        time.sleep(0.05)


@pytest.fixture
def lost() -> queue.SimpleQueue[str]:
    return queue.SimpleQueue()


def make_leader(
    lost: queue.SimpleQueue[str], num_taken: Callable[[int], int] = lambda count: count
) -> tuple[Leader, Connection]:
    """A leader of a follower that does all, and of one that only holds its end."""
    near, far = multiprocessing.Pipe()
    other_near, other_far = multiprocessing.Pipe()
    for arguments in ((far, num_taken),):
        threading.Thread(target=follow, args=arguments, daemon=True).start()
    leader = Leader(
        {"process 1": near, "process 2": other_near},
        silent_s=SILENT_S,
        behind_s=BEHIND_S,
    )
    leader.on_lost = lost.put
    return leader, other_far


def test_a_job_is_waited_for_until_all_have_done_it(
    lost: queue.SimpleQueue[str],
) -> None:
    leader, other = make_leader(lost)
    wait = leader.begin("job")
    waiting = threading.Thread(target=wait)
    waiting.start()
    other.send(Report(1, 0))
    waiting.join(0.3)
    assert waiting.is_alive()
    other.send(Report(1, 1))
    waiting.join(10.0)
    assert not waiting.is_alive()
    leader.stop()
    assert lost.empty()


def test_one_that_is_silent_is_lost(lost: queue.SimpleQueue[str]) -> None:
    leader, _other = make_leader(lost)
    assert lost.get(timeout=10.0) == "process 2 has been silent for 0.6 s"
    with pytest.raises(RuntimeError, match="process 2 has been silent"):
        leader.begin("job")


def test_one_that_ends_is_lost(lost: queue.SimpleQueue[str]) -> None:
    leader, other = make_leader(lost)
    wait = leader.begin("job")
    other.close()
    assert lost.get(timeout=10.0) == "process 2 has ended"
    with pytest.raises(RuntimeError, match="process 2 has ended"):
        wait()


def test_one_that_takes_no_step_is_lost_though_it_reports(
    lost: queue.SimpleQueue[str],
) -> None:
    leader, other = make_leader(lost, num_taken=lambda count: min(count, 1))
    threading.Thread(target=follow, args=(other, lambda c: c), daemon=True).start()
    leader.send("step")
    time.sleep(1.5 * BEHIND_S)  # it has taken all there is
    assert lost.empty()
    leader.send("step")
    assert lost.get(timeout=10.0) == "process 1 has not taken a step for 0.9 s"
