"""Attention of a step's tokens over paged keys and values.

A backend writes the step's keys and values into its cache and attends each token to its
own sequence. `cpu.py` and `page_loop.py` are plain XLA and share their arithmetic
(`softmax.py`); they differ in the order of their loops. The CPU's cache is `cache.py`,
that of all others `combined.py`.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jserve_models.config import ModelConfig
from jserve_models.steps import KvCache, StepLayout

CacheShapes = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionUse:
    """What a backend is asked to run.

    Attributes:
      platform: JAX's name of the kind of device.
      dtype: Type of the cache, and of queries unless it has fewer bits.
      page_size: Tokens in one page.
      num_rows: Most rows of a step, decodes and blocks.
      max_pages_per_row: Pages of the longest context.
    """

    config: ModelConfig
    platform: str
    dtype: np.dtype
    page_size: int
    num_rows: int
    max_pages_per_row: int


def stored(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Returns keys or values as a cache of this type holds them: finite numbers.

    What is masked is multiplied by zero: a NaN would outlive its request.
    """
    most = float(jnp.finfo(dtype).max)
    wide = jnp.clip(x.astype(jnp.float32), -most, most)
    return jnp.where(jnp.isnan(wide), 0, wide).astype(dtype)


class AttentionBackend(Protocol):
    """How attention runs on one kind of device; a module of this folder is one.

    Every backend keeps the rule for tokens: a row's result is bit-identical within one
    program and row whatever its neighbours are, and across rows, programs and backends
    within 1e-4 in float32, and within what a narrower type rounds.
    """

    __name__: str

    @property
    def KV_AXES(self) -> tuple[str | None, ...]:
        """What the first dimensions of the cache's arrays count."""

    def kv_shapes(
        self, config: ModelConfig, num_pages: int, page_size: int
    ) -> CacheShapes:
        """Returns the shapes of the arrays of the cache."""

    def pool_size(self, kv: KvCache, num_layers: int) -> tuple[int, int]:
        """Returns the number of pages in the cache of a layer, and of tokens in one."""

    def attend(
        self,
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
        """Writes the keys and values of one layer, then attends.

        Args:
          q: [T, H, D] queries; one at position `i` sees keys at `0..i`.
          k: [T, K, D] keys of the step's tokens; `v` are their values.
          layer: [] index of the layer.
          scale: Factor of the scores before their softmax.
          window: Number of keys that a query sees, its own included; None for all.
          soft_cap: Bound `c` of the scores, which become `c tanh(score / c)`.
          sinks: [H] float32 scores that take part in the softmax and have no value.

        Returns:
          The weighted values [T, H, D], and the cache.
        """
