"""Sweeps over several processes."""

import os
import signal
import subprocess
import sys
import time

import pytest


def test_workers_end_with_the_process_that_is_told_to(tmp_path) -> None:
    command = [
        *(sys.executable, "-m", "jserve_tools.simulate", "--num_processes=2"),
        *("--policies=fcfs,edf", "--qps=5,6", "--num_requests=20000"),
        f"--output={tmp_path}",
    ]
    none = subprocess.DEVNULL
    with subprocess.Popen(
        command, start_new_session=True, stdout=none, stderr=none
    ) as process:
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        while process.poll() is None:
            with open(children) as file:
                if len(file.read().split()) >= 3:  # with the resource tracker
                    break
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.05)
