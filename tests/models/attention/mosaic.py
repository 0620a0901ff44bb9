"""Mosaic GPU kernels without a GPU: interpreted on CPU, or lowered for another card.

What is private in JAX is used here only, and never by the product.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import pytest

from jserve_models.attention import gpu
from jserve_models.attention.paged_mosaic import plgpu


@contextlib.contextmanager
def interpreted(*, detects_races: bool = True) -> Iterator[None]:
    """What is traced inside runs in the interpreter, which may raise at a data race."""
    from jax._src.interpreters import mlir
    from jax._src.pallas.mosaic_gpu import primitives as found
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    primitives: Any = found  # that of JAX 0.12

    def multiply_and_add(acc, a, b):
        return acc + jnp.dot(a, b, preferred_element_type=jnp.float32)

    # JAX 0.12 interprets any primitive that CPUs know, which `mma` is not.
    rule = mlir.lower_fun(multiply_and_add, multiple_results=False)
    mlir.register_lowering(primitives.mma_p, rule, platform="cpu")
    try:
        with plgpu.force_gpu_interpret_mode(
            plgpu.InterpretGPUParams(detect_races=detects_races)
        ):
            yield
    finally:
        interpret_pallas_call.reset_gpu_interpret_mode_state()


@contextlib.contextmanager
def lowered_for(capability: tuple[int, int]) -> Iterator[None]:
    """What is lowered inside is for a GPU of this compute capability.

    A GPU that is not there has none: Mosaic would take it for 9.0.
    """
    from jax.experimental.mosaic.gpu import utils

    number = float(f"{capability[0]}.{capability[1]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_infer_arch", lambda: capability)
        patch.setattr(gpu, "compute_capability", lambda: number)
        yield
