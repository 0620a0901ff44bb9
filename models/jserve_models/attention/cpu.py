"""Attention on CPU: one pair of row and page after the other.

The work is the sum of pages over rows: a row pays for its own pages only, and padding
for none. A page is read where it stands and used while it is in the processor's cache,
whereas a step over all rows at once has to gather a page of each first.
"""

import functools

import jax
import jax.numpy as jnp

from jserve_models.attention import cache
from jserve_models.attention.cache import kv_shapes, pool_size
from jserve_models.attention.groups import attend_groups
from jserve_models.attention.softmax import Scores, State, finish
from jserve_models.steps import KvCache, RowGroup

__all__ = ["attend", "kv_shapes", "pool_size"]


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
    rows = jnp.argsort(num_pages == 0, stable=True)  # without padding in between

    def one_page(
        _: jax.Array, carry: tuple[jax.Array, jax.Array, State, jax.Array]
    ) -> tuple[jax.Array, jax.Array, State, jax.Array]:
        place, count, state, answers = carry
        row = rows[place]
        mine = queries[row]
        # A row begins at its first page.
        state = jax.tree.map(
            lambda fresh, old: jnp.where(count == 0, fresh, old),
            scores.begin(mine),
            state,
        )
        index = begin[row] + count
        page = first_page + group.page_table[row, index]
        state = scores.add_page(
            state,
            mine,
            jax.lax.dynamic_index_in_dim(k_cache, page, keepdims=False),
            jax.lax.dynamic_index_in_dim(v_cache, page, keepdims=False),
            positions[row],
            index * page_size + offsets,
        )
        # The answer of its last page stays.
        answers = jax.lax.dynamic_update_index_in_dim(answers, finish(state), row, 0)
        count += 1
        is_last = count == num_pages[row]
        return place + is_last, jnp.where(is_last, 0, count), state, answers

    zero = jnp.int32(0)
    empty = jnp.zeros(queries.shape, jnp.float32)
    carry = (zero, zero, scores.begin(queries[0]), empty)
    num_pairs = jnp.sum(num_pages)
    answers: jax.Array = jax.lax.fori_loop(0, num_pairs, one_page, carry)[-1]
    return answers


attend = functools.partial(attend_groups, cache, _attend_rows)
