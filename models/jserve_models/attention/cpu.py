"""Attention on CPU: one pair of row and page after the other.

The work is the sum of pages over rows: a row pays for its own pages only, and padding
for none. A page is read where it stands and used while it is in the processor's cache,
whereas a step over all rows at once has to gather a page of each first.
"""

import functools

import jax
import jax.numpy as jnp

from jserve_models.attention import cache
from jserve_models.attention.cache import KV_AXES, kv_shapes, pool_size
from jserve_models.attention.groups import attend_groups
from jserve_models.attention.softmax import Scores, State, finish
from jserve_models.steps import KvCache, RowGroup

__all__ = ["KV_AXES", "attend", "kv_shapes", "pool_size"]


def _at(array: jax.Array, index: jax.Array) -> jax.Array:
    """Returns one part of an array; the index is not below 0."""
    part: jax.Array = jax.lax.dynamic_index_in_dim(
        array, index, keepdims=False, allow_negative_indices=False
    )
    return part


def _attend_rows(
    queries: jax.Array,
    positions: jax.Array,
    kv: KvCache,
    group: RowGroup,
    first_page: jax.Array,
    scores: Scores,
) -> jax.Array:
    """Returns the answers; those of padding are zero."""
    k_cache, v_cache = kv
    page_size = v_cache.shape[2]
    offsets = jnp.arange(page_size, dtype=jnp.int32)
    begin = scores.first_page(group.positions[:, 0], page_size)
    num_pages = jnp.maximum(group.num_pages - begin, 0)
    # The pairs are those of the first row, then those of the second, and so on.
    ends = jnp.cumsum(num_pages)
    before = ends - num_pages - begin

    def one_pair(
        pair: jax.Array, carry: tuple[State, jax.Array]
    ) -> tuple[State, jax.Array]:
        state, answers = carry
        row = jnp.sum(pair >= ends, dtype=jnp.int32)
        index = pair - _at(before, row)
        page = _at(_at(group.page_table, row), index)
        # A row begins at its first page.
        mine = _at(queries, row)
        is_first = index == _at(begin, row)
        state = jax.tree.map(
            lambda fresh, old: jnp.where(is_first, fresh, old),
            scores.begin(mine),
            state,
        )
        state = scores.add_page(
            state,
            mine,
            _at(k_cache, first_page + page),
            _at(v_cache, first_page + page),
            _at(positions, row),
            index * page_size + offsets,
        )
        # The answer of its last page stays.
        answers = jax.lax.dynamic_update_index_in_dim(
            answers, finish(state), row, 0, allow_negative_indices=False
        )
        return state, answers

    answers = jnp.zeros(queries.shape, jnp.float32)
    carry = scores.begin(queries[0]), answers
    found: jax.Array = jax.lax.fori_loop(0, ends[-1], one_pair, carry)[1]
    return found


attend = functools.partial(attend_groups, cache, _attend_rows)
