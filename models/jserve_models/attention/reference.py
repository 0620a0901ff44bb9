"""Paged attention in plain XLA: an online softmax over the pages of each row.

The loop runs as many trips as the group's longest row has pages, known only at run
time, so context length is not part of a program's shape. A page that is masked for
a row is an *exact* no-op for it: its scores become a finite very negative number,
whose exponential is zero, and the running maximum does not move. A row's result
therefore does not depend, to the last bit, on how long its neighbours are.
"""

import jax
import jax.numpy as jnp

from jserve_models.steps import RowGroup

_MASKED = -1e30  # finite: minus infinity would make padding rows NaN


def attend(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    group: RowGroup,
    first_page: jax.Array,
    *,
    scale: float,
) -> jax.Array:
    """Attends each query to its own sequence; see `attention.Attend`."""
    num_rows, width, num_heads, head_dim = q.shape
    _, num_kv_heads, page_size, _ = v_cache.shape
    group_size = num_heads // num_kv_heads
    # Scale, and group by KV head: queries that share one stand together, so that
    # keys are never repeated.
    queries = (q * scale).reshape(num_rows, width, num_kv_heads, group_size, head_dim)
    queries = queries.transpose(0, 2, 3, 1, 4).reshape(
        num_rows, num_kv_heads, group_size * width, head_dim
    )
    positions = jnp.tile(group.positions, (1, group_size))  # [rows, group * width]
    offsets = jnp.arange(page_size, dtype=jnp.int32)

    def one_page(
        index: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        best, total, weighted = state
        # Scores against one page of each row; what a query must not see is masked.
        page = first_page + group.page_table[:, index]
        # An unused entry may point past the end; what it reads is masked.
        k = k_cache.at[page].get(mode="clip")  # [rows, K, D, P]
        v = v_cache.at[page].get(mode="clip")
        scores = jnp.einsum(
            "rkqd,rkdp->rkqp", queries, k, preferred_element_type=jnp.float32
        )
        is_seen = index * page_size + offsets <= positions[:, :, None]
        scores = jnp.where(is_seen[:, None], scores, _MASKED)
        # The online softmax: what is summed so far shrinks to the new maximum.
        new_best = jnp.maximum(best, scores.max(axis=-1))
        shrink = jnp.exp(best - new_best)
        weights = jnp.exp(scores - new_best[..., None])
        total = total * shrink + weights.sum(axis=-1)
        weighted = weighted * shrink[..., None] + jnp.einsum(
            "rkqp,rkpd->rkqd",
            weights.astype(v.dtype),
            v,
            preferred_element_type=jnp.float32,
        )
        return new_best, total, weighted

    rows_shape = queries.shape[:-1]
    state = (
        jnp.full(rows_shape, _MASKED, jnp.float32),
        jnp.zeros(rows_shape, jnp.float32),
        jnp.zeros(queries.shape, jnp.float32),
    )
    _, total, weighted = jax.lax.fori_loop(0, group.num_live_pages, one_page, state)
    # Divide by the softmax's sum and put the axes back. No page at all (a group of
    # padding only) leaves a total of zero.
    out: jax.Array = weighted / jnp.maximum(total, 1e-30)[..., None]
    out = out.reshape(num_rows, num_kv_heads, group_size, width, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape).astype(q.dtype)
