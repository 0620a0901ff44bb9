"""Faults of the engine and beside it: who hears what, and how soon (`make trust`).

A real server is broken at one point while clients are at work. What breaks the engine
ends every request with an error in the API's form, and the process with status 70; what
is beside the engine ends none, or one.
"""

import pathlib
import signal
import time
from collections.abc import Iterator

import pytest

from tests.trust.broken_server import SLOW_S
from tests.trust.real_server import (
    PROMPTS,
    STEP_TIMEOUT_S,
    Client,
    all_at_work,
    serving,
)

pytestmark = pytest.mark.trust

TOLD_S = 1.0  # after the fault
HANGS = {"hang", "plan that hangs"}
DEAD = {"plan", "launch", "wait", "memory", "apply", "garbage", *HANGS}
# Beside the engine: how many of the requests end with an error.
NUM_FAILED = {"slow step": 0, "delivery": 0, "one answer": 1, "record": 0, "metrics": 0}


@pytest.fixture(scope="module")
def rows() -> Iterator[list[str]]:
    rows = [f"{'fault':16} {'errors':>6} {'codes':>12} {'told, s':>8} {'exit':>5}"]
    yield rows
    print("", *rows, sep="\n")


@pytest.mark.parametrize("point", [*sorted(DEAD), *NUM_FAILED])
def test_a_fault(point: str, rows: list[str], tmp_path: pathlib.Path) -> None:
    with serving(tmp_path, point) as server:
        clients = all_at_work(server)
        fault_s = time.monotonic()
        server.fault.touch()
        for client in clients:
            client.wait()
        server.fault.unlink()
        failed = [client for client in clients if client.error is not None]
        told_s = max((client.end_s for client in failed), default=fault_s) - fault_s
        status = None
        if point in DEAD:
            status = server.process.wait(timeout=20)
        codes = sorted({client.status for client in failed})
        rows.append(
            f"{point:16} {len(failed):6} {codes!s:>12} {told_s:8.2f} {status or 0:5}"
        )
        assert all(client.is_right for client in clients), [
            (client.error, len(client.tokens)) for client in clients
        ]
        if point in DEAD:
            assert len(failed) == len(clients) and set(codes) == {200, 500}
            assert told_s < TOLD_S + (STEP_TIMEOUT_S if point in HANGS else 0.0)
            assert status == 70
            return
        assert len(failed) == NUM_FAILED[point]
        if failed:
            assert told_s < TOLD_S
        assert server.health()["warm"]
        again = Client(server, PROMPTS[0], True, 20)
        again.run()
        assert again.is_right and again.error is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 0
    if point == "slow step":
        assert max(client.end_s for client in clients) - fault_s > SLOW_S
