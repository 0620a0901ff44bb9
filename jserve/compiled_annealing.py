"""The search's inner loop compiled by Numba, where that is installed.

The one idea: `annealing_kernel.anneal` is compiled as it stands, on arrays instead of
lists. Both give the same plan bit for bit, so the compiler is a matter of speed alone.
It is the extra `annealing`; Numba is imported when a kernel is asked for, so that
nothing else pays for it.
"""

import functools
import importlib.util
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jserve_sched.annealing import search
from jserve_sched.annealing_kernel import NEVER_NS, PYTHON_KERNEL, Kernel, anneal
from jserve_sched.annealing_problem import AnnealingProblem

_logger = logging.getLogger(__name__)

_TIMED_PROPOSALS = 2_000
_NUM_TIMED = 3


@functools.cache
def compiled_kernel() -> Kernel | None:
    """Returns Numba's kernel, compiled, or None where Numba is not installed.

    The program is kept on disk (beside the source, or in the user's cache folder
    where that is read-only; `NUMBA_CACHE_DIR` names another), so that only a
    machine's first start compiles. Where none can be written, or the one there is
    damaged, each process compiles. The interpreter's lock is let go while it runs.
    """
    if importlib.util.find_spec("numba") is None:
        return None
    import numba

    try:
        return _ready(numba.njit(nogil=True, cache=True)(anneal))
    except Exception as error:  # reading a damaged cache may raise anything
        _logger.warning(
            "no cache for the annealing kernel, it is compiled in this process: %s: %s",
            type(error).__name__,
            error,
        )
        return _ready(numba.njit(nogil=True)(anneal))


def _ready(run: Callable[..., Any]) -> Kernel:
    """Returns the kernel of a function, which has run once."""
    kernel = Kernel(run=run, table=np.ascontiguousarray, slice_proposals=256)
    search(_hopeless(2, 2), num_proposals=1, kernel=kernel)
    return kernel


def best_kernel() -> Kernel:
    """Returns the fastest kernel there is, ready to run: a compiled one has compiled.

    Without Numba it is plain Python's, which one line of the log says.
    """
    start_s = time.perf_counter()
    kernel = compiled_kernel()
    if kernel is None:
        _logger.info(
            "Numba is not installed (pip install 'jserve[annealing]'): annealing "
            "runs as plain Python, about twenty times slower"
        )
        return PYTHON_KERNEL
    _logger.info("annealing kernel ready in %.1f s", time.perf_counter() - start_s)
    return kernel


def proposals_per_s(kernel: Kernel, num_jobs: int, max_batch: int) -> float:
    """Returns how many proposals a second a search tries here, measured.

    The best of a few short searches, start and end included: what else the machine
    does at that moment is left to the clock that ends a search. The jobs are random,
    and so tight that promises break and are kept again as they move.
    """
    problem = _hopeless(num_jobs, max_batch)
    times_s = []
    for _ in range(_NUM_TIMED):
        start_s = time.perf_counter()
        search(problem, num_proposals=_TIMED_PROPOSALS, kernel=kernel)
        times_s.append(time.perf_counter() - start_s)
    return _TIMED_PROPOSALS / min(times_s)


def _hopeless(num_jobs: int, max_batch: int) -> AnnealingProblem:
    """Returns random jobs of up to 10 s of which not all can keep their promises."""
    rng = np.random.default_rng(0)
    alone_ns = rng.integers(10**8, 10**10, size=(num_jobs, 1))
    exec_ns = alone_ns + alone_ns // 10 * np.arange(max_batch)
    latest_ns = rng.integers(0, 5 * 10**9 * num_jobs, size=(num_jobs, 1))
    latest_ns = np.repeat(latest_ns, max_batch, axis=1)
    latest_ns[0] = NEVER_NS
    return AnnealingProblem(
        exec_ns=exec_ns,
        latest_ns=latest_ns,
        waited_ns=np.zeros(num_jobs, np.int64),
        kv_tokens=np.ones(num_jobs, np.int64),
        max_kv_tokens=num_jobs,
    )
