import os
import pathlib
import signal
import threading
import time

import pytest

from jserve.timing.idle_process import IdleProcess
from tests.programs import start


def test_a_function_runs_elsewhere_at_idle_priority() -> None:
    process = IdleProcess()
    assert process.run("os:getpriority", os.PRIO_PROCESS, 0) == 19
    if hasattr(os, "SCHED_IDLE"):
        assert process.run("os:sched_getscheduler", 0) == os.SCHED_IDLE
    assert process.run("os:getppid") == os.getpid()
    with pytest.raises(RuntimeError, match="invalid literal"):
        process.run("builtins:int", "x")


def test_it_ends_when_it_is_stopped_and_no_more_are_run() -> None:
    process = IdleProcess()
    start_s = time.monotonic()
    threading.Timer(0.5, process.stop).start()
    assert process.run("time:sleep", 60) is None
    assert process.run("os:getpid") is None
    assert time.monotonic() - start_s < 30.0


def test_it_does_not_outlive_the_server() -> None:
    code = """
import threading, time
from jserve.timing.idle_process import IdleProcess
one = IdleProcess()
threading.Thread(target=one.run, args=("time:sleep", 60), daemon=True).start()
while one._child is None:
    time.sleep(0.01)
print(one._child.pid, flush=True)
time.sleep(60)
"""
    server = start("-c", code)
    assert server.stdout is not None
    child = int(server.stdout.readline())
    time.sleep(0.5)
    server.send_signal(signal.SIGKILL)
    server.communicate()
    deadline_s = time.monotonic() + 20.0
    while time.monotonic() < deadline_s:
        try:
            stat = pathlib.Path(f"/proc/{child}/stat").read_text()
        except FileNotFoundError:
            return
        if ") Z " in stat:  # nobody waits for it here
            return
        time.sleep(0.05)
    raise AssertionError("it goes on")
