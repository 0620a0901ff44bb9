"""An online softmax over pages, for queries grouped by the KV head that they share.

A page that is masked for a query is an *exact* no-op for it: its scores become a finite
very negative number, whose exponential is zero, and the running maximum does not move.

Letters: `g` query heads share a KV head, `w` tokens a row; `...` is empty, or rows.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

_MASKED = -1e30  # finite: minus infinity would make padding rows NaN


class State(NamedTuple):
    """What the pages so far amount to."""

    best: jax.Array  # [..., K, g * w] highest score
    total: jax.Array  # [..., K, g * w] sum of the exponentials, over that of `best`
    weighted: jax.Array  # [..., K, g * w, D] values weighted by these exponentials


@dataclasses.dataclass(frozen=True)
class Scores:
    """How scores are made and which count; see `attention.AttentionBackend.attend`."""

    window: int | None
    soft_cap: float | None
    sinks: jax.Array | None  # [H]

    def first_page(self, start: jax.Array, page_size: int) -> jax.Array:
        """Returns the first page that a row beginning at `start` sees."""
        if self.window is None:
            return jnp.zeros_like(start)
        return jnp.maximum(start + 1 - self.window, 0) // page_size

    def begin(self, queries: jax.Array) -> State:
        """Returns the state before the first page, of queries [..., K, g * w, D]."""
        shape = queries.shape[:-1]
        weighted = jnp.zeros(queries.shape, jnp.float32)
        if self.sinks is None:
            best = jnp.full(shape, _MASKED, jnp.float32)
            return State(best, jnp.zeros(shape, jnp.float32), weighted)
        num_kv_heads, size = shape[-2:]
        group_size = len(self.sinks) // num_kv_heads
        sinks = self.sinks.astype(jnp.float32).reshape(num_kv_heads, group_size)
        best = jnp.repeat(sinks, size // group_size, axis=1)
        ones = jnp.ones(shape, jnp.float32)
        return State(jnp.broadcast_to(best, shape), ones, weighted)

    def add_page(
        self,
        state: State,
        queries: jax.Array,
        k: jax.Array,
        v: jax.Array,
        query_positions: jax.Array,
        key_positions: jax.Array,
    ) -> State:
        """Takes a page of each row into account.

        Args:
          queries: [..., K, g * w, D], scaled.
          k: [..., K, D, P]; `v` is [..., K, P, D]. The cache may have fewer bits.
          query_positions: [..., g * w].
          key_positions: [P].
        """
        # Scores; what a query must not see is masked.
        k, v = k.astype(queries.dtype), v.astype(queries.dtype)
        scores = jnp.matmul(queries, k, preferred_element_type=jnp.float32)
        if self.soft_cap is not None:
            scores = self.soft_cap * jnp.tanh(scores / self.soft_cap)
        is_seen = key_positions <= query_positions[..., None]
        if self.window is not None:
            is_seen &= key_positions > query_positions[..., None] - self.window
        scores = jnp.where(is_seen[..., None, :, :], scores, _MASKED)
        # The online softmax: what is summed so far shrinks to the new maximum.
        best = jnp.maximum(state.best, scores.max(axis=-1))
        shrink = jnp.exp(state.best - best)
        weights = jnp.exp(scores - best[..., None])
        total = state.total * shrink + weights.sum(axis=-1)
        weighted = state.weighted * shrink[..., None] + jnp.matmul(
            weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return State(best, total, weighted)


def finish(state: State) -> jax.Array:
    """Returns the weighted values [..., K, g * w, D]; zeros where no page was seen."""
    return state.weighted / jnp.maximum(state.total, 1e-30)[..., None]
