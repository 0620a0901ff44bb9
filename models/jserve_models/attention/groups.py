"""From a step's tokens to groups of rows that attend together, and back.

Queries that share a KV head stand together, so that keys are never repeated. Letters:
`g` query heads share a KV head, `w` tokens a row.
"""

from typing import Protocol

import jax
import jax.numpy as jnp

from jserve_models.attention.softmax import Scores
from jserve_models.steps import KvCache, RowGroup, StepLayout


class Cache(Protocol):
    """How tokens are written to a cache; a module is one."""

    def first_page(self, layout: StepLayout, layer: jax.Array) -> jax.Array:
        """Returns where page 0 of a layer stands."""

    def write_kv(
        self,
        kv: KvCache,
        k: jax.Array,
        v: jax.Array,
        layout: StepLayout,
        layer: jax.Array,
    ) -> KvCache:
        """Writes every token's key and value of one layer."""


class AttendGroup(Protocol):
    """Attends the rows of one group."""

    def __call__(
        self,
        queries: jax.Array,
        positions: jax.Array,
        kv: KvCache,
        group: RowGroup,
        first_page: jax.Array,
        scores: Scores,
    ) -> jax.Array:
        """Returns the answers, float32, like `queries`.

        Args:
          queries: [rows, K, g * w, D], scaled.
          positions: [rows, g * w] of the queries.
          first_page: [] where page 0 of the group's page table stands in the cache.
        """


def attend_groups(
    cache: Cache,
    attend_group: AttendGroup,
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
    """Writes keys and values, then attends; see `attention.AttentionBackend`."""
    kv = cache.write_kv(kv, k, v, layout, layer)
    scores = Scores(window, soft_cap, sinks)
    (_, num_heads, head_dim), num_kv_heads = q.shape, k.shape[1]
    group_size = num_heads // num_kv_heads
    first_page = cache.first_page(layout, layer)
    answers, begin = [], 0
    for group in layout.groups:
        rows, width = group.positions.shape
        end = begin + rows * width
        queries = (q[begin:end] * scale).reshape(
            rows, width, num_kv_heads, group_size, head_dim
        )
        queries = queries.transpose(0, 2, 3, 1, 4).reshape(
            rows, num_kv_heads, group_size * width, head_dim
        )
        positions = jnp.tile(group.positions, (1, group_size))
        answer = attend_group(queries, positions, kv, group, first_page, scores)
        answer = answer.reshape(rows, num_kv_heads, group_size, width, head_dim)
        answers.append(answer.transpose(0, 3, 1, 2, 4).reshape(end - begin, -1))
        begin = end
    return jnp.concatenate(answers).reshape(q.shape).astype(q.dtype), kv
