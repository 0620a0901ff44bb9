"""The search's inner loop compiled by Numba, where that is installed.

`annealing.anneal` is compiled as it stands, on arrays instead of lists. Both give the
same plan bit for bit, so the compiler is a matter of speed alone. It is the extra
`annealing`; Numba is imported when a kernel is asked for, so that nothing else pays
for it.
"""

import functools
import importlib.util
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jserve_sched.annealing import PYTHON_KERNEL, Kernel, anneal, search
from jserve_sched.annealing_problem import AnnealingProblem

_logger = logging.getLogger(__name__)


@functools.cache
def best_kernel() -> Kernel:
    """Returns the fastest kernel there is, ready to run; the log says which.

    A compiled one is kept on disk (beside the source, or in the user's cache folder
    where that is read-only; `NUMBA_CACHE_DIR` names another), so that only a machine's
    first start compiles. Where none can be written, or the one there is damaged, each
    process compiles. The interpreter's lock is released while it runs.
    """
    start_s = time.perf_counter()
    if importlib.util.find_spec("numba") is None:
        _logger.info(
            "Numba is not installed (pip install 'jserve[annealing]'): annealing "
            "runs as plain Python, about fifty times slower"
        )
        return PYTHON_KERNEL
    import numba

    try:
        kernel = _ready(numba.njit(nogil=True, cache=True)(anneal))
    except Exception as error:  # reading a damaged cache may raise anything
        _logger.warning(
            "no cache for the annealing kernel, it is compiled in this process: %s: %s",
            type(error).__name__,
            error,
        )
        kernel = _ready(numba.njit(nogil=True)(anneal))
    _logger.info("annealing kernel ready in %.1f s", time.perf_counter() - start_s)
    return kernel


def _ready(run: Callable[..., Any]) -> Kernel:
    """Returns the kernel of a function, which has run once."""
    kernel = Kernel(run=run, table=np.ascontiguousarray, slice_jobs=100_000)
    problem = AnnealingProblem(
        exec_s=np.ones((2, 1)),
        latest_s=np.zeros((2, 1)),
        waited_s=np.zeros(2),
        kv_tokens=np.ones(2, np.int64),
        max_kv_tokens=1,
    )
    search(problem, num_proposals=1, kernel=kernel)
    return kernel
