"""The search's inner loop compiled by Numba, where that is installed.

`annealing.anneal` is compiled as it stands, on arrays instead of lists. Both give the
same plan bit for bit; only the speed differs. Numba is the extra `annealing`. It is
imported when a kernel is asked for, since that takes long.
"""

import functools
import importlib.util
import logging
import time

from jserve_sched.policies.annealing.search import Kernel, anneal

_logger = logging.getLogger(__name__)
_INTS, _FLOATS = "i8[::1], ", "f8[::1], "
_SIGNATURE = (  # of `anneal`, in the order of its arguments
    f"UniTuple(f8, 2)({2 * _FLOATS}{_INTS}i8, f8, f8, {3 * _INTS}{_FLOATS}"
    f"{4 * _INTS}{_FLOATS}f8, f8)"
)


@functools.cache
def best_kernel() -> Kernel:
    """Returns the fastest kernel there is, ready to run; the log says which.

    A compiled one is kept on disk (beside the source, or in the user's cache folder
    where that is read-only; `NUMBA_CACHE_DIR` names another), so that only a machine's
    first start compiles. If it cannot be written, or is damaged, each process compiles.
    The interpreter's lock is released while it runs.
    """
    start_s = time.perf_counter()
    if importlib.util.find_spec("numba") is None:
        _logger.info(
            "Numba is not installed (pip install 'jserve[annealing]'): annealing "
            "runs as plain Python, about fifty times slower"
        )
        return anneal
    import numba

    kernel: Kernel
    try:
        kernel = numba.njit(_SIGNATURE, nogil=True, cache=True)(anneal)
    except Exception as error:  # reading a damaged cache may raise anything
        _logger.warning(
            "no cache for the annealing kernel, it is compiled in this process: %r",
            error,
        )
        kernel = numba.njit(_SIGNATURE, nogil=True)(anneal)
    _logger.info("annealing kernel ready in %.1f s", time.perf_counter() - start_s)
    return kernel
