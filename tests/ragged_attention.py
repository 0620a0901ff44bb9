"""What stands for the TPU's kernel on a CPU, where it does not run."""

import jax
import jax.numpy as jnp

_SIZES = {"num_kv_pages_per_block", "num_queries_per_block", "vmem_limit_bytes"}


def traceable_kernel(
    q: jax.Array,
    cache: jax.Array,
    kv_lens: jax.Array,
    page_table: jax.Array,
    cu_q_lens: jax.Array,
    num_seqs: jax.Array,
    *,
    sm_scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
    k_scale: float | None,
    v_scale: float | None,
    **sizes: int,
) -> jax.Array:
    """Attends token by token; what no sequence covers is NaN."""
    assert set(sizes) == _SIZES
    # Without a factor the kernel does not cast.
    assert (k_scale is v_scale is None) == (cache.dtype == q.dtype)
    num_kv_heads = cache.shape[2] // 2
    tokens = jnp.arange(len(q))
    is_covered = tokens < cu_q_lens[num_seqs[0]]
    sequence = jnp.searchsorted(cu_q_lens[1:], tokens, side="right")
    sequence = jnp.minimum(sequence, len(kv_lens) - 1)
    position = kv_lens[sequence] - cu_q_lens[sequence + 1] + tokens

    def attend(one: tuple[jax.Array, ...]) -> jax.Array:
        query, sequence, position = one
        pages = cache[page_table[sequence]].reshape(-1, *cache.shape[2:])
        pages = pages.astype(q.dtype)
        heads = query.reshape(num_kv_heads, -1, query.shape[-1])
        scores = jnp.einsum("kgd,skd->kgs", heads, pages[:, 0::2]) * sm_scale
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        keys = jnp.arange(len(pages))
        is_seen = keys <= position
        if sliding_window is not None:
            is_seen &= keys > position - sliding_window
        weights = jax.nn.softmax(jnp.where(is_seen, scores, -1e30), axis=-1)
        answer = jnp.einsum("kgs,skd->kgd", weights, pages[:, 1::2])
        return answer.reshape(query.shape)

    out = jax.lax.map(attend, (q, sequence, position))
    return jnp.where(is_covered[:, None, None], out, jnp.nan)
