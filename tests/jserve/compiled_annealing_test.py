"""The compiled kernel: plain Python's plans, bit for bit, and near the optimum."""

import json
import logging
import pathlib
import pickle
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from annealing_instances import NO_LIMIT, Instance, draw
from jserve import compiled_annealing
from jserve.compiled_annealing import best_kernel
from jserve_sched.annealing import PYTHON_KERNEL, Kernel, anneal, search

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "annealing.json"


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
            problem = draw(
                rng, num_jobs, max_batch, max_kv_tokens=max_kv_tokens
            ).problem()
            plain, compiled = (
                search(problem, num_proposals=600, seed=7, kernel=one)
                for one in (PYTHON_KERNEL, kernel)
            )
            assert compiled.batch_of.tolist() == plain.batch_of.tolist()
            assert compiled[1:] == plain[1:]


def test_within_one_percent_of_all_optima_on_file(kernel: Kernel) -> None:
    for fields, num_attained, total_s in json.loads(GOLDEN.read_text()):
        found = search(Instance(**fields).problem(), kernel=kernel)
        assert found.score.goal >= 0.99 * num_attained / total_s


@pytest.mark.usefixtures("fresh")
def test_without_numba_plain_python_runs_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        compiled_annealing.importlib.util, "find_spec", lambda name: None
    )
    with caplog.at_level(logging.INFO):
        assert best_kernel() is PYTHON_KERNEL
    assert ["Numba is not installed" in text for text in caplog.messages] == [True]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    "fault",
    [
        EOFError("Ran out of input"),
        OSError(28, "No space left on device"),
        pickle.UnpicklingError("invalid load key"),
        RuntimeError("cannot cache function 'anneal'"),
    ],
)
def test_an_unusable_cache_costs_one_line_and_a_compilation(
    fault: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def njit(*, nogil: bool, cache: bool = False) -> Callable[[Callable], Callable]:
        def broken(*arguments: object) -> object:
            raise fault

        assert nogil
        return lambda run: broken if cache else run

    monkeypatch.setitem(sys.modules, "numba", SimpleNamespace(njit=njit))
    monkeypatch.setattr(
        compiled_annealing.importlib.util, "find_spec", lambda name: name
    )
    with caplog.at_level(logging.WARNING):
        assert best_kernel().run is anneal
    (message,) = caplog.messages
    assert "compiled in this process" in message and str(fault) in message
