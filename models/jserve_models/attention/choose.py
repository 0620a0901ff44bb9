"""Which backend attends: one that is asked for by name, or that of the device."""

from collections.abc import Callable

from jserve_models.attention import (
    AttentionBackend,
    AttentionUse,
    cpu,
    gpu,
    page_loop,
    tpu,
)

Fault = Callable[[AttentionUse], str | None]


def _no_fault(use: AttentionUse) -> str | None:
    del use
    return None


# Each with what says why it cannot run.
BACKENDS: dict[str, tuple[AttentionBackend, Fault]] = {
    "cpu": (cpu, _no_fault),
    "page_loop": (page_loop, _no_fault),
    "gpu": (gpu, gpu.fault),
    "tpu": (tpu, tpu.fault),
}
# What is tried on each platform.
_BY_PLATFORM = {
    "cpu": ("cpu",),
    "gpu": ("gpu", "page_loop"),
    "tpu": ("tpu", "page_loop"),
}


def choose_attention(name: str, use: AttentionUse) -> tuple[AttentionBackend, str]:
    """Returns a backend, and a line that says which and why.

    Args:
      name: Key of `BACKENDS`, or "auto" for the first one that the platform can run.

    Raises:
      ValueError: If the backend that is named cannot run, saying why.
    """
    if name == "auto":
        names = _BY_PLATFORM.get(use.platform, ("page_loop",))
    else:
        names = (name,)
    faults: list[str] = []
    for one in names:
        backend, find_fault = BACKENDS[one]
        if (fault := find_fault(use)) is None:
            reason = "; ".join((*faults, f"on {use.platform}"))
            return backend, f"attention: {one} ({reason})"
        faults.append(f"{one} {fault}")
    raise ValueError(f"attention={name!r}: {'; '.join(faults)}")
