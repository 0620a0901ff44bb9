import time

import pytest

from jserve.engine.watchdog import Watchdog


def test_a_pause_of_the_whole_process_is_no_fault_of_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s, failed = 100.0, list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    watchdog = Watchdog(60.0, failed.append)
    watchdog.check()
    watchdog.begin(0.5)
    for step_s in (1.0, 1000.0, 4.0, *[4.0] * 14):
        now_s += step_s
        watchdog.check()
    assert not failed  # 60 s after the pause
    now_s += 1.0
    watchdog.check()
    watchdog.check()
    assert failed == ["the engine ended no step in 60 s"]
    watchdog.begin(2.0)
    for _ in range(49):
        now_s += 4.0
        watchdog.check()
    watchdog.rest()
    now_s += 4.0
    watchdog.check()
    now_s += 4.0
    watchdog.check()
    assert len(failed) == 1
