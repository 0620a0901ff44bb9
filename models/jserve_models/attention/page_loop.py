"""Attention wherever XLA runs: all rows at once, page by page.

The loop runs as many trips as the group's longest row has pages, known only at run
time, so context length is not part of a program's shape. It is what GPU and TPU take
where no kernel fits: few large operations, though every row pays for the longest.
"""

import functools

import jax
import jax.numpy as jnp

from jserve_models.attention import combined
from jserve_models.attention.combined import KV_AXES, kv_shapes, pool_size
from jserve_models.attention.groups import attend_groups
from jserve_models.attention.softmax import Scores, State, finish
from jserve_models.steps import KvCache, RowGroup

__all__ = ["KV_AXES", "attend", "kv_shapes", "pool_size"]


def _attend_all(
    queries: jax.Array,
    positions: jax.Array,
    kv: KvCache,
    group: RowGroup,
    first_page: jax.Array,
    scores: Scores,
) -> jax.Array:
    """Returns the answers; see `groups.AttendGroup`."""
    (cache,) = kv
    page_size = cache.shape[1]
    offsets = jnp.arange(page_size, dtype=jnp.int32)
    # With few heads XLA for TPU would copy the cache to have them last but two.
    flat = cache.reshape(len(cache), -1, cache.shape[-1])

    def one_page(index: jax.Array, state: State) -> State:
        pages = first_page + group.page_table[:, index]
        page = flat.at[pages].get(mode="clip")  # [rows, P * 2K, D]
        page = page.reshape(-1, *cache.shape[1:])
        return scores.add_page(
            state,
            queries,
            page[:, :, 0::2].transpose(0, 2, 3, 1),
            page[:, :, 1::2].transpose(0, 2, 1, 3),
            positions,
            index * page_size + offsets,
        )

    begin = jnp.min(scores.first_page(group.positions[:, 0], page_size))
    end = jnp.max(group.num_pages)
    state = jax.lax.fori_loop(begin, end, one_page, scores.begin(queries))
    return finish(state)


attend = functools.partial(attend_groups, combined, _attend_all)
