"""Attention on NVIDIA GPUs: a kernel that reads pages where they stand.

The kernel is `paged_mosaic.py`; it runs once a layer for a step's decode rows, and
once for its prefill blocks. It takes a few sizes of heads: the cache has the next
larger one, so what is padded is part of the pool's memory.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jserve_models.attention import AttentionUse, CacheShapes, combined
from jserve_models.attention.combined import KV_AXES, pool_size
from jserve_models.config import ModelConfig
from jserve_models.steps import KvCache, StepLayout

__all__ = ["KV_AXES", "attend", "fault", "kv_shapes", "pool_size"]


def compute_capability() -> float:
    """Returns that of the default device; 0 if it has none, and no NVIDIA GPU 9.

    What JAX compiles for a GPU that is not there is for 9.0, too.
    """
    found = str(getattr(jax.devices()[0], "compute_capability", 9.0))
    return float(found) if found[0].isdigit() else 0.0  # "gfx90a" is AMD's


@functools.cache
def fault(use: AttentionUse) -> str | None:
    """Returns what the kernel does not take, by compiling one; None if it can run."""
    # Imported where it runs: Mosaic takes half a second to load.
    from jserve_models.attention import paged_mosaic

    if use.platform != "gpu":
        return f"needs an NVIDIA GPU, and the platform is {use.platform}"
    if (capability := compute_capability()) < 8:
        return f"needs compute capability 8.0, and the device has {capability}"
    ((_, *page),) = kv_shapes(use.config, 1, use.page_size)
    if (reason := paged_mosaic.fault(use.dtype, page[-1], use.page_size)) is not None:
        return reason
    kernel = functools.partial(
        paged_mosaic.paged_attention, scale=1.0, has_tma=capability >= 9
    )
    row = jax.ShapeDtypeStruct((1,), jnp.int32)
    arguments = (
        jax.ShapeDtypeStruct((1, 1, use.config.num_heads, page[-1]), use.dtype),
        jax.ShapeDtypeStruct((1, *page), use.dtype),
        *(row, row, jax.ShapeDtypeStruct((1, 1), jnp.int32)),
    )
    try:
        jax.jit(kernel).lower(*arguments).compile()
    except Exception as error:  # of Mosaic, of XLA, or of ptxas
        return f"does not compile: {str(error).partition(chr(10))[0]}"
    return None


def kv_shapes(config: ModelConfig, num_pages: int, page_size: int) -> CacheShapes:
    """Returns the shape of the cache, with heads of a size that the kernel takes."""
    head_dim = max(1 << (config.head_dim - 1).bit_length(), 64)
    padded = dataclasses.replace(config, head_dim=head_dim)
    return combined.kv_shapes(padded, num_pages, page_size)


@functools.partial(jax.jit, static_argnames=("scale", "window", "soft_cap", "has_tma"))
def _attend_rows(*arrays: Any, **options: Any) -> jax.Array:
    """Attends a group of rows; see `paged_mosaic.paged_attention`.

    The kernel is traced and lowered once for all layers, since this is a function of
    its own in the program; that takes a second.
    """
    from jserve_models.attention import paged_mosaic

    return paged_mosaic.paged_attention(*arrays, **options)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    kv: KvCache,
    layout: StepLayout,
    layer: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
) -> tuple[jax.Array, KvCache]:
    """Writes keys and values, then attends; see `attention.AttentionBackend`."""
    kv = combined.write_kv(kv, k, v, layout, layer)
    (cache,) = kv
    (_, num_heads, head_dim), (_, page_size, _, wide) = q.shape, cache.shape
    q = jnp.pad(q, ((0, 0), (0, 0), (0, wide - head_dim)))
    answers, begin = [], 0
    for group in layout.groups:
        rows, width = group.positions.shape
        end = begin + rows * width
        starts = group.positions[:, 0]
        # Entries that are not used may point past the discard page.
        page_table = jnp.minimum(group.page_table, layout.num_pages)
        answer = _attend_rows(
            q[begin:end].reshape(rows, width, num_heads, wide),
            cache,
            starts,
            jnp.minimum(starts + width, group.num_pages * page_size),
            page_table + combined.first_page(layout, layer),
            scale=scale,
            window=window,
            soft_cap=soft_cap,
            sinks=sinks,
            has_tma=compute_capability() >= 9,
        )
        answers.append(answer.reshape(end - begin, num_heads, wide))
        begin = end
    return jnp.concatenate(answers)[:, :, :head_dim], kv
