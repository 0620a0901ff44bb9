"""Attention wherever XLA runs: all rows at once, page by page.

The loop runs as many trips as the group's longest row has pages, known only at run
time, so context length is not part of a program's shape. It is what GPU and TPU take
where no kernel fits: few large operations, though every row pays for the longest.
"""

import functools

import jax
import jax.numpy as jnp

from jserve_models.attention.cache import kv_shapes, pool_size
from jserve_models.attention.groups import attend_groups
from jserve_models.attention.softmax import Scores, State, finish
from jserve_models.steps import KvCache, RowGroup

__all__ = ["attend", "kv_shapes", "pool_size"]


def _attend_all(
    queries: jax.Array,
    positions: jax.Array,
    kv: KvCache,
    group: RowGroup,
    first_page: jax.Array,
    scores: Scores,
) -> jax.Array:
    """Returns the answers; see `groups.AttendGroup`."""
    k_cache, v_cache = kv
    page_size = v_cache.shape[2]
    offsets = jnp.arange(page_size, dtype=jnp.int32)

    def one_page(index: jax.Array, state: State) -> State:
        page = first_page + group.page_table[:, index]
        # An unused entry may point past the end; what it reads is masked.
        return scores.add_page(
            state,
            queries,
            k_cache.at[page].get(mode="clip"),
            v_cache.at[page].get(mode="clip"),
            positions,
            index * page_size + offsets,
        )

    begin = jnp.min(scores.first_page(group.positions[:, 0], page_size))
    end = jnp.max(group.num_pages)
    state = jax.lax.fori_loop(begin, end, one_page, scores.begin(queries))
    return finish(state)


attend = functools.partial(attend_groups, _attend_all)
