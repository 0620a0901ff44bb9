"""The compiled kernel: plain Python's plans, bit for bit, and much sooner."""

import json
import logging
import pathlib
import pickle
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from jserve_sched.annealing_kernel import PYTHON_KERNEL, Kernel, anneal

from annealing_instances import NO_LIMIT, Instance, draw
from jserve import compiled_annealing
from jserve.compiled_annealing import best_kernel, compiled_kernel, proposals_per_s
from jserve_sched.annealing import search

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "annealing.json"


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    pytest.importorskip("numba")
    return best_kernel()


@pytest.fixture
def fresh() -> Iterator[None]:
    """A process that has not asked for the kernel, before and after."""
    compiled_kernel.cache_clear()
    yield
    compiled_kernel.cache_clear()


@pytest.mark.parametrize("scale", ["relative", "raw"])
@pytest.mark.parametrize("max_batch", [1, 2, 5])
def test_equals_plain_python_bit_for_bit(
    kernel: Kernel, max_batch: int, scale: str
) -> None:
    rng = np.random.default_rng(max_batch)
    for num_jobs in (1, 2, 7, 20, 60):
        for max_kv_tokens in (NO_LIMIT, 900):
            problem = draw(
                rng, num_jobs, max_batch, max_kv_tokens=max_kv_tokens
            ).problem()
            python, compiled = (
                search(problem, num_proposals=400, seed=7, kernel=one, scale=scale)
                for one in (PYTHON_KERNEL, kernel)
            )
            assert compiled == python


def test_within_one_percent_of_all_optima_on_file(kernel: Kernel) -> None:
    rows = json.loads(GOLDEN.read_text())
    assert len(rows) == 200
    for fields, num_met, total_ns in rows:
        problem = Instance(**fields).problem()
        found = search(problem, kernel=kernel)
        assert found.score.goal >= 0.99e9 * num_met / total_ns


@pytest.mark.parametrize("max_batch", [1, 2, 4])
def test_beats_the_sorted_start_at_20_jobs(kernel: Kernel, max_batch: int) -> None:
    rng = np.random.default_rng(2)
    gains = []
    for _ in range(60):
        found = search(draw(rng, 20, max_batch).problem(), kernel=kernel)
        gains.append(found.score.goal / found.sorted_score.goal - 1)
    assert np.mean(gains) >= 0.04


def test_a_deadline_changes_nothing_until_it_comes(kernel: Kernel) -> None:
    problem = draw(np.random.default_rng(5), 30, 2).problem()
    whole = search(problem, num_proposals=1_000, kernel=kernel)
    sliced = search(problem, num_proposals=1_000, kernel=kernel, deadline=lambda: False)
    assert sliced == whole


def test_speed_is_measured(kernel: Kernel) -> None:
    assert proposals_per_s(kernel, 20, 2) > 3 * proposals_per_s(PYTHON_KERNEL, 20, 2)


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
def test_a_cache_that_is_no_good_costs_one_line_and_a_compilation(
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
        assert best_kernel() is compiled_kernel()
    (message,) = caplog.messages
    assert "compiled in this process" in message and str(fault) in message
