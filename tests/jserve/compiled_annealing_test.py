"""The compiled kernel: plain Python's plans, bit for bit."""

import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from jserve.compiled_annealing import best_kernel
from jserve_sched.policies.annealing.search import Kernel, anneal, search
from tests.annealing_instances import NO_LIMIT, draw


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    pytest.importorskip("numba")
    return best_kernel()


@pytest.fixture
def fresh() -> Iterator[None]:
    """A process that has not asked for the kernel, before and after."""
    best_kernel.cache_clear()
    yield
    best_kernel.cache_clear()


@pytest.mark.parametrize("max_batch", [1, 2, 5])
def test_equals_plain_python_bit_for_bit(kernel: Kernel, max_batch: int) -> None:
    rng = np.random.default_rng(max_batch)
    for num_jobs in (1, 2, 7, 20, 60):
        for max_kv_tokens in (NO_LIMIT, 900):
            problem = draw(rng, num_jobs, max_batch, max_kv_tokens=max_kv_tokens)
            plain, compiled = (
                search(problem, num_proposals=600, seed=7, kernel=one)
                for one in (anneal, kernel)
            )
            assert compiled.batch_of.tolist() == plain.batch_of.tolist()
            assert compiled[1:] == plain[1:]


@pytest.mark.usefixtures("fresh")
def test_without_numba_plain_python_runs_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert best_kernel() is anneal
    assert ["Numba is not installed" in text for text in caplog.messages] == [True]


@pytest.mark.usefixtures("fresh")
def test_an_unusable_cache_costs_one_line_and_a_compilation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def njit(_: str, *, nogil: bool, cache: bool = False) -> Callable:
        def compiled(run: Callable) -> Callable:
            if cache:
                raise EOFError("Ran out of input")
            return run

        assert nogil
        return compiled

    monkeypatch.setitem(sys.modules, "numba", SimpleNamespace(njit=njit))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with caplog.at_level(logging.WARNING):
        assert best_kernel() is anneal
    (message,) = caplog.messages
    assert "compiled in this process" in message and "Ran out of input" in message
