"""How many host cores this process may use."""

import os


def num_cpus() -> int:
    """Returns the cores this process is allowed on: fewer than there are in a box."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
