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

KvCache = tuple[jax.Array, ...]
"""Keys and values of all pages of all layers, laid out by the attention backend."""


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
    length: jax.Array  # [rows] real tokens; 0 for padding
    page_table: jax.Array  # [rows, max_pages]
    num_pages: jax.Array  # [rows] pages of the row's sequence; 0 for padding


class StepLayout(NamedTuple):
    """Where each token of a step stands, derived once and shared by all layers."""

    groups: tuple[RowGroup, ...]  # in token order
    positions: jax.Array  # [T]
    write_page: jax.Array  # [T] page the token's K and V go to; N discards them
    write_offset: jax.Array  # [T] place in that page
    logit_token: jax.Array  # [S] place on the token axis of each wanted row's last
    num_pages: int  # N


def _group(
    inputs: StepInputs, rows: slice, width: int, page_size: int
) -> tuple[RowGroup, jax.Array]:
    start, length = inputs.row_start[rows], inputs.row_len[rows]
    offsets = jnp.arange(width, dtype=jnp.int32)
    stop = jnp.where(length > 0, start + length, 0)
    group = RowGroup(
        positions=start[:, None] + offsets,
        length=length,
        page_table=inputs.page_table[rows],
        num_pages=(stop + page_size - 1) // page_size,
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
        num_pages=num_pages,
    )
