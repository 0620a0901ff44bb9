"""What an engine states about itself, to operators and in reports."""

import dataclasses
import functools
import importlib.metadata
import platform
import sys
import time
from typing import Any

import jserve
from jserve.engine.interface import ServingEngine


def engine_facts(engine: ServingEngine) -> dict[str, Any]:
    """Returns settings, limits, counters, device and versions of an engine."""
    return {
        "engine": dataclasses.asdict(engine.config),
        "max_model_len": engine.limits.max_model_len,
        "num_kv_tokens": engine.limits.num_kv_tokens,
        "vocab_size": engine.vocab_size,
        "stats": dataclasses.asdict(engine.stats()),
        "device": _device(),
        "versions": _versions(),
        "now_s": time.monotonic(),
    }


@functools.cache
def _versions() -> dict[str, str]:
    names = ("jax", "flax", "numpy")
    own = {"jserve": jserve.__version__, "python": platform.python_version()}
    return own | {name: importlib.metadata.version(name) for name in names}


def _device() -> dict[str, Any] | None:
    """Describes what the engine computes on; None where no engine has loaded JAX."""
    jax = sys.modules.get("jax")
    if jax is None:
        return None
    one, *_ = devices = jax.devices()
    return {"platform": one.platform, "kind": one.device_kind, "count": len(devices)}
