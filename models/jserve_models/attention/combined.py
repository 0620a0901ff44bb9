"""The KV cache of accelerators: keys and values of a token in one contiguous row.

It is one array [L * (N + 1), P, 2K, D] for `L` layers, `N` pages, `P` tokens in a page,
`K` KV heads and `D` head size: the key of head `h` stands at `2h`, its value behind it
at `2h + 1`. Page `p` of layer `l` is `l * (N + 1) + p`, so a kernel reaches a layer by
what is added to its page table. Page `N` of a layer is its discard page: padding is
written there and reads it, since a kernel fetches the pages of padding rows, too.
A kernel may need more heads, or wider ones, than the model has; the rest is zeros.
"""

import jax
import jax.numpy as jnp

from jserve_models.attention import CacheShapes, stored
from jserve_models.config import ModelConfig
from jserve_models.steps import KvCache, StepLayout

KV_AXES = (None, None, "kv_heads")


def kv_shapes(config: ModelConfig, num_pages: int, page_size: int) -> CacheShapes:
    """Returns the shape of the cache, discard pages included."""
    pages = config.num_layers * (num_pages + 1)
    return ((pages, page_size, 2 * config.num_kv_heads, config.head_dim),)


def pool_size(kv: KvCache, num_layers: int) -> tuple[int, int]:
    """Returns the number of pages in the cache of a layer, and of tokens in one."""
    num_pages, page_size, _, _ = kv[0].shape
    return num_pages // num_layers - 1, page_size


def first_page(layout: StepLayout, layer: jax.Array) -> jax.Array:
    """Returns where page 0 of a layer stands."""
    return layer * (layout.num_pages + 1)


def write_kv(
    kv: KvCache, k: jax.Array, v: jax.Array, layout: StepLayout, layer: jax.Array
) -> KvCache:
    """Writes every token's key and value of one layer, in a single scatter of rows.

    Args:
      k: [T, K, D]; so is `v`.
      layer: [] index of the layer.
    """
    (cache,) = kv
    num_tokens, num_kv_heads, head_dim = k.shape
    rows = jnp.stack([k, v], axis=2).reshape(num_tokens, 2 * num_kv_heads, head_dim)
    rows = stored(rows, cache.dtype)
    missing = (cache.shape[2] - rows.shape[1], cache.shape[3] - head_dim)
    rows = jnp.pad(rows, [(0, 0), *((0, size) for size in missing)])
    page = first_page(layout, layer) + layout.write_page
    return (cache.at[page, layout.write_offset].set(rows, mode="drop"),)
