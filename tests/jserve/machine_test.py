import os

import pytest

from jserve.machine import machine_digest, num_cpus


def test_cores_that_are_forbidden_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert num_cpus() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # not every system has it
    assert num_cpus() == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert num_cpus() == 1


def test_flags_and_cores_make_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine_digest()
    assert machine_digest() == before
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        assert machine_digest() != before
    monkeypatch.setattr("jserve.machine.num_cpus", lambda: 77)
    assert machine_digest() != before
