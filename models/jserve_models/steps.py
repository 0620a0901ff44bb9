"""One step's input: which tokens run, for which rows, into which KV pages.

A step has one flat axis of tokens: `B` decode rows of one token each, then `NB`
prefill blocks of `Q` tokens, each block part of one sequence. The sizes are
static; everything else is data, so one compiled program serves every mixture.

Letters: `R = B + NB` rows, `S` rows whose logits are wanted, `T = B + NB * Q`
tokens, `L` layers, `N` pages in the pool, `K` KV heads, `P` page size in tokens,
`D` head size.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jserve_models.config import ModelConfig

KvCache = tuple[jax.Array, jax.Array]
"""Keys [L * N, K, D, P] and values [L * N, K, P, D]; page `p` of layer `l` is
`l * N + p`. Both stand as their product wants them: scores run along the tokens of a
page, answers along the head, and neither is transposed on the way."""


class StepInputs(NamedTuple):
    """The tokens, rows and pages of a step; int32. A row of length 0 is padding."""

    tokens: jax.Array  # [T] decode rows first, then blocks
    row_start: jax.Array  # [R] first position the row computes
    row_len: jax.Array  # [R] real tokens: a decode row 0..1, a block 0..Q
    page_table: jax.Array  # [R, max_pages] the sequence's pages; unused = N
    logit_rows: jax.Array  # [S] rows whose logits are wanted; beyond R = padding


@dataclasses.dataclass(frozen=True)
class StepShape:
    """The static part: `num_rows` B, `num_blocks` NB of `block_tokens` Q."""

    num_rows: int
    num_blocks: int
    block_tokens: int


class RowGroup(NamedTuple):
    """Rows of equal width that attend together: the decode rows, or the blocks."""

    positions: jax.Array  # [rows, width]
    page_table: jax.Array  # [rows, max_pages]
    num_live_pages: jax.Array  # [] pages of the group's longest row


class StepLayout(NamedTuple):
    """Where each token of a step stands, derived once and shared by all layers."""

    groups: tuple[RowGroup, ...]  # in token order
    positions: jax.Array  # [T]
    write_page: jax.Array  # [T] page the token's K and V go to; N discards them
    write_offset: jax.Array  # [T] place in that page
    logit_token: jax.Array  # [S] place on the token axis of each wanted row's last


def kv_shapes(
    config: ModelConfig, num_pages: int, page_size: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the shape of the key cache, and of the value cache."""
    pages = (config.num_layers * num_pages, config.num_kv_heads)
    return (
        (*pages, config.head_dim, page_size),
        (*pages, page_size, config.head_dim),
    )


def new_kv(
    config: ModelConfig, num_pages: int, page_size: int, dtype: jax.typing.DTypeLike
) -> KvCache:
    """Returns an empty cache.

    It holds zeros because attention multiplies what it masks by zero: a NaN left
    in a fresh page would not vanish.
    """
    keys, values = kv_shapes(config, num_pages, page_size)
    return jnp.zeros(keys, dtype), jnp.zeros(values, dtype)


def _group(
    inputs: StepInputs, rows: slice, width: int, page_size: int
) -> tuple[RowGroup, jax.Array]:
    start, length = inputs.row_start[rows], inputs.row_len[rows]
    offsets = jnp.arange(width, dtype=jnp.int32)
    stop = jnp.where(length > 0, start + length, 0)
    group = RowGroup(
        positions=start[:, None] + offsets,
        page_table=inputs.page_table[rows],
        num_live_pages=(jnp.max(stop) + page_size - 1) // page_size,
    )
    return group, offsets < length[:, None]


def lay_out(
    inputs: StepInputs, shape: StepShape, num_pages: int, page_size: int
) -> StepLayout:
    """Derives positions, write slots and attention groups from the inputs."""
    num_rows, num_blocks, width = shape.num_rows, shape.num_blocks, shape.block_tokens
    parts = []
    last = []
    if num_rows:
        parts.append(_group(inputs, slice(0, num_rows), 1, page_size))
        last.append(jnp.arange(num_rows, dtype=jnp.int32))
    if num_blocks:
        parts.append(_group(inputs, slice(num_rows, None), width, page_size))
        block_start = num_rows + width * jnp.arange(num_blocks, dtype=jnp.int32)
        last.append(block_start + jnp.maximum(inputs.row_len[num_rows:] - 1, 0))
    pages = []
    for group, is_real in parts:
        page = jnp.take_along_axis(
            group.page_table, group.positions // page_size, axis=1, mode="clip"
        )
        pages.append(jnp.where(is_real, page, num_pages).reshape(-1))
    positions = jnp.concatenate([group.positions.reshape(-1) for group, _ in parts])
    return StepLayout(
        groups=tuple(group for group, _ in parts),
        positions=positions,
        write_page=jnp.concatenate(pages),
        write_offset=positions % page_size,
        logit_token=jnp.concatenate(last).at[inputs.logit_rows].get(mode="clip"),
    )


def write_kv(
    kv: KvCache,
    keys: jax.Array,
    values: jax.Array,
    layout: StepLayout,
    layer: jax.Array,
    num_pages: int,
) -> KvCache:
    """Writes every token's key and value of one layer, in a single scatter each.

    One scatter and no other kind of write: XLA then updates a donated cache in
    place, where a second kind would make it copy the whole cache.

    Args:
      keys: [T, K, D]; so are `values`.
      layer: [] index of the layer.
    """
    k_cache, v_cache = kv
    # Past the end of the *flat* array: N alone is the next layer's first page, and
    # -1 would wrap around to the last page even when out-of-range is dropped.
    page = jnp.where(
        layout.write_page < num_pages,
        layer * num_pages + layout.write_page,
        k_cache.shape[0],
    )
    offset = layout.write_offset
    # What is masked is multiplied by zero: a NaN would outlive its request.
    values = jnp.where(jnp.isfinite(values), values, 0)
    return (
        k_cache.at[page, :, :, offset].set(keys.astype(k_cache.dtype), mode="drop"),
        v_cache.at[page, :, offset].set(values.astype(v_cache.dtype), mode="drop"),
    )
