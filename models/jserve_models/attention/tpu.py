"""Attention on TPU: JAX's ragged paged attention, a Pallas kernel over mixed rows.

The kernel takes sequences, each with consecutive queries: a decode row is one, and so
is a chunk of a prompt, whatever number of blocks it fills, so that its pages are read
once. `sequences` finds them on the device. The kernel copies pages to fast memory while
it computes on others, which `page_loop.py` cannot.

It takes heads of 128 numbers, and 1, 2, 4 or a multiple of 8 KV heads. The cache has
the next larger sizes, so their memory is part of the pool's.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jserve_models.attention import AttentionUse, CacheShapes, combined
from jserve_models.attention.combined import KV_AXES, pool_size
from jserve_models.config import ModelConfig
from jserve_models.steps import KvCache, RowGroup, StepLayout

__all__ = ["KV_AXES", "attend", "fault", "kv_shapes", "pool_size", "sequences"]

_HEAD_DIM = 128  # numbers in a vector register's row
_BLOCK_TOKENS = 512  # keys that the kernel works on at once, in whole pages
_BLOCK_QUERIES = 32
_VMEM_BYTES = 48 * 2**20  # of the 64 MiB or more of a core
_SMEM_BYTES = 960 * 2**10  # of 1 MiB, for the page table of a step
_SMEM_COLUMNS = 128  # a row of the table takes a multiple of them


class Sequences(NamedTuple):
    """A step's sequences, in the order of their queries; int32.

    Only the first `num_seqs` count, of `R` rows with `M` pages at most.
    """

    kv_lens: jax.Array  # [R] keys up to the last query's own
    page_table: jax.Array  # [R, M]
    cu_q_lens: jax.Array  # [R + 1] where queries begin; then where the last one's end
    num_seqs: jax.Array  # [1], at least one


def fault(use: AttentionUse) -> str | None:
    """Returns what the kernel does not take; None if it can run."""
    if use.platform != "tpu":
        return f"needs a TPU, and the platform is {use.platform}"
    if use.config.sinks:
        return "takes no sinks"
    if use.config.head_dim > _HEAD_DIM:
        return f"takes no head_dim={use.config.head_dim}, at most {_HEAD_DIM}"
    if use.dtype.name not in ("bfloat16", "float32", "float8_e4m3fn"):
        return f"takes no dtype={use.dtype.name}"
    if use.dtype.itemsize == 1 and use.config.num_kv_heads == 1:
        return f"takes 2 KV heads or more of dtype={use.dtype.name}"
    columns = -(-use.max_pages_per_row // _SMEM_COLUMNS) * _SMEM_COLUMNS
    if (size := 4 * use.num_rows * columns) > _SMEM_BYTES:
        return (
            f"takes a page table of {_SMEM_BYTES} bytes at most, and {use.num_rows} "
            f"rows of {use.max_pages_per_row} pages have {size}: a larger page_size, "
            f"or fewer max_num_seqs or max_num_batched_tokens, make it smaller"
        )
    return None


def kv_shapes(config: ModelConfig, num_pages: int, page_size: int) -> CacheShapes:
    """Returns the shape of the cache, with heads that the kernel takes."""
    count, group_size = config.num_kv_heads, config.num_heads // config.num_kv_heads
    count = 1 << (count - 1).bit_length() if count < 8 else -(-count // 8) * 8
    padded = dataclasses.replace(
        config,
        num_heads=count * group_size,
        num_kv_heads=count,
        head_dim=_HEAD_DIM,
    )
    return combined.kv_shapes(padded, num_pages, page_size)


def sequences(groups: tuple[RowGroup, ...]) -> Sequences:
    """Returns the sequences that the rows of a step make up.

    A row continues the one before if that is full, has the same pages, and ends where
    the row starts. Blocks are padded up to the next row's tokens: such queries come
    after the real ones, which do not see their keys. Rows of padding in a run are one
    sequence of their own; those behind the last real row are left out.
    """
    sizes = [group.positions.shape for group in groups]
    widths = np.concatenate([np.full(rows, width) for rows, width in sizes])
    begins = np.cumsum(widths) - widths
    indices = np.arange(len(widths))
    start = jnp.concatenate([group.positions[:, 0] for group in groups])
    length = jnp.concatenate([group.length for group in groups])
    table = jnp.concatenate([group.page_table for group in groups])
    is_padding = length == 0
    start = jnp.where(is_padding, 0, start)
    # The rows at which sequences begin.
    continues = (
        (length[:-1] == widths[:-1])
        & (start[1:] == start[:-1] + widths[:-1])
        & jnp.all(table[1:] == table[:-1], axis=1)
    )
    continues = jnp.where(is_padding[1:], is_padding[:-1], continues & ~is_padding[1:])
    is_first = jnp.concatenate([jnp.ones(1, bool), ~continues])
    first = jnp.argsort(~is_first, stable=True)
    # Their queries, up to the last real row's.
    last = jnp.max(jnp.where(is_padding, 0, indices))
    num_seqs = jnp.sum(is_first & (indices <= last), dtype=jnp.int32)
    end = jnp.asarray(begins + widths, jnp.int32)[last]
    queries = jnp.where(indices < num_seqs, jnp.asarray(begins, jnp.int32)[first], end)
    cu_q_lens = jnp.append(queries, end)
    return Sequences(
        kv_lens=start[first] + cu_q_lens[1:] - cu_q_lens[:-1],
        page_table=table[first],
        cu_q_lens=cu_q_lens,
        num_seqs=num_seqs[None],
    )


def _kernel(*arrays: jax.Array, **options: Any) -> jax.Array:
    """Returns the answers like the queries; see JAX's `ragged_paged_attention`."""
    # Imported where it runs: Pallas takes a while to load.
    from jax.experimental.pallas.ops.tpu import ragged_paged_attention

    answers: jax.Array = ragged_paged_attention.ragged_paged_attention(
        *arrays, **options
    )
    return answers


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
    """Writes keys and values, then attends; see `attention.AttentionBackend`.

    Raises:
      ValueError: If there are sinks, which the kernel does not have.
    """
    if sinks is not None:
        raise ValueError("attention='tpu' takes no sinks")
    kv = combined.write_kv(kv, k, v, layout, layer)
    (cache,) = kv
    num_tokens, num_heads, head_dim = q.shape
    _, page_size, num_combined, wide = cache.shape
    all_heads = num_heads // k.shape[1] * num_combined // 2
    padding = ((0, 0), (0, all_heads - num_heads), (0, wide - head_dim))
    found = sequences(layout.groups)
    # With a factor the kernel casts keys and values of fewer bits to the queries' type.
    factor = None if cache.dtype == q.dtype else 1.0
    out = _kernel(
        jnp.pad(q, padding),
        cache,
        found.kv_lens,
        found.page_table + combined.first_page(layout, layer),
        found.cu_q_lens,
        found.num_seqs,
        sm_scale=scale,
        sliding_window=window,
        soft_cap=soft_cap,
        k_scale=factor,
        v_scale=factor,
        # Given, since the kernel would look them up for this process's first device.
        num_kv_pages_per_block=min(
            max(_BLOCK_TOKENS // page_size, 1), found.page_table.shape[1]
        ),
        num_queries_per_block=min(_BLOCK_QUERIES, num_tokens),
        vmem_limit_bytes=_VMEM_BYTES,
    )
    # The kernel leaves padding as it was in memory.
    is_real = jnp.concatenate(
        [
            (jnp.arange(group.positions.shape[1]) < group.length[:, None]).reshape(-1)
            for group in layout.groups
        ]
    )
    out = out[:, :num_heads, :head_dim]
    return jnp.where(is_real[:, None, None], out, 0), kv
