"""The KV cache of the CPU: pages, and how tokens are written.

Keys are [L * N, K, D, P] and values [L * N, K, P, D] for `L` layers, `N` pages, `K` KV
heads, `D` head size and `P` tokens in a page; page `p` of layer `l` is `l * N + p`.
Both stand as their product wants them: scores run along the tokens of a page, answers
along the head, and neither is transposed on the way.
"""

import jax
import jax.numpy as jnp

from jserve_models.attention import CacheShapes, stored
from jserve_models.config import ModelConfig
from jserve_models.steps import KvCache, StepLayout

KV_AXES = (None, "kv_heads")


def kv_shapes(config: ModelConfig, num_pages: int, page_size: int) -> CacheShapes:
    """Returns the shape of the key cache, and of the value cache."""
    pages = (config.num_layers * num_pages, config.num_kv_heads)
    return (
        (*pages, config.head_dim, page_size),
        (*pages, page_size, config.head_dim),
    )


def pool_size(kv: KvCache, num_layers: int) -> tuple[int, int]:
    """Returns the number of pages in the cache of a layer, and of tokens in one."""
    num_pages, _, page_size, _ = kv[1].shape
    return num_pages // num_layers, page_size


def first_page(layout: StepLayout, layer: jax.Array) -> jax.Array:
    """Returns where page 0 of a layer stands."""
    return layer * layout.num_pages


def write_kv(
    kv: KvCache, k: jax.Array, v: jax.Array, layout: StepLayout, layer: jax.Array
) -> KvCache:
    """Writes every token's key and value of one layer, in a single scatter each.

    One scatter and no other kind of write: XLA then updates a donated cache in
    place, where a second kind would make it copy the whole cache.

    Args:
      k: [T, K, D]; so is `v`.
      layer: [] index of the layer.
    """
    k_cache, v_cache = kv
    # Past the end of the *flat* array: N alone is the next layer's first page, and
    # -1 would wrap around to the last page even when out-of-range is dropped.
    page = jnp.where(
        layout.write_page < layout.num_pages,
        first_page(layout, layer) + layout.write_page,
        k_cache.shape[0],
    )
    offset = layout.write_offset
    return (
        k_cache.at[page, :, :, offset].set(stored(k, k_cache.dtype), mode="drop"),
        v_cache.at[page, :, offset].set(stored(v, v_cache.dtype), mode="drop"),
    )
