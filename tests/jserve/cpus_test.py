import os

import pytest

from jserve.cpus import num_cpus


def test_cores_that_are_forbidden_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert num_cpus() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # not every system has it
    assert num_cpus() == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert num_cpus() == 1
