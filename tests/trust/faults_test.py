"""Faults of the engine and beside it: who hears what, and how soon (`make trust`).

A real server is broken at one point while clients are at work. What breaks the engine
ends every request with an error in the API's form, and the process with status 70; what
is beside the engine ends none, or one.
"""

import json
import pathlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from jserve_tools.reporting.tables import render
from tests import ROOT
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
def rows() -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    yield rows
    texts = [[*rows[0]], *([str(one) for one in row.values()] for row in rows)]
    print(f"\n{render(texts)}")
    folder = ROOT / "out/trust"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faults.json").write_text(json.dumps(rows))


@pytest.mark.parametrize("point", [*sorted(DEAD), *NUM_FAILED])
def test_a_fault(
    point: str, rows: list[dict[str, Any]], tmp_path: pathlib.Path
) -> None:
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
            {"fault": point, "errors": len(failed), "statuses": codes}
            | {"told_s": round(told_s, 2), "exit": status or 0}
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
