"""The machine: its cores, its CPU's instructions, and the compiler for it."""

import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import platform

import jax

# Variables and settings with which the compiler makes other programs of a step.
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
_SETTINGS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_threefry_partitionable",
)


def num_cpus() -> int:
    """Returns the number of cores that this process may use, fewer in a container."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not every system does
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def free_memory_bytes(root: pathlib.Path = pathlib.Path("/")) -> int | None:
    """Returns the memory that processes here may still take; None where none is stated.

    It is what Linux has available, or the limit of a container if that is less.
    """
    try:
        rows = (root / "proc/meminfo").read_text().splitlines()
        (free,) = (row.split()[1] for row in rows if row.startswith("MemAvailable:"))
    except (OSError, ValueError):
        return None
    sizes = [int(free) * 1024]
    for path in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroups 2 and 1
        with contextlib.suppress(OSError, ValueError):  # it is "max" without a limit
            sizes.append(int((root / "sys/fs/cgroup" / path).read_text()))
    return min(sizes)


def machine_digest() -> str:
    """Returns a digest of all that compiles and runs a step: libraries, device, host.

    It covers the CPU's instructions: a model may have fewer under another hypervisor.
    """
    try:
        cpu = pathlib.Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        cpu = platform.processor()
    kinds = ("model name", "flags", "Features")
    device = jax.devices()[0]
    facts = (
        *(importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")),
        (device.platform, device.device_kind, device.client.platform_version),
        (platform.machine(), num_cpus()),
        *(row for row in cpu.splitlines() if row.startswith(kinds)),
        *(os.environ.get(name) for name in _VARIABLES),
        *(repr(getattr(jax.config, name)) for name in _SETTINGS),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
