"""Rotary position embedding: queries and keys turned by their position.

The two halves of what turns in a head form its pairs, as in Hugging Face checkpoints.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jserve_models.config import Llama3Scaling, ModelConfig, PairScaling


def frequencies(config: ModelConfig, *, is_local: bool = False) -> np.ndarray:
    """Returns the angle per position of each pair, [rotary_dim / 2] float32.

    Args:
      is_local: Whether they are those of `local_rope_theta`.
    """
    size = config.rotary_dim or config.head_dim
    theta = (is_local and config.local_rope_theta) or config.rope_theta
    exponents = np.arange(0, size, 2, dtype=np.float32) / size
    plain: np.ndarray = (1.0 / theta**exponents).astype(np.float32)
    scaling = None if is_local else config.rope_scaling
    if scaling is None:
        return plain
    if isinstance(scaling, PairScaling):
        return plain / np.array(scaling.factors, np.float32)
    return _llama3(plain, scaling)


def _llama3(plain: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    turns = scaling.original_max_len * plain / (2 * math.pi)  # in the trained context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    mixed: np.ndarray = keep * plain + (1 - keep) * plain / scaling.factor
    return mixed.astype(np.float32)


def angles(
    config: ModelConfig, positions: jax.Array, *, is_local: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Returns cosine and sine, each [T, 1, rotary_dim / 2] float32."""
    angle = positions.astype(jnp.float32)[:, None, None] * frequencies(
        config, is_local=is_local
    )
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    magnitude = getattr(config.rope_scaling, "magnitude", 1.0)
    if magnitude != 1.0 and not is_local:
        cos, sin = cos * magnitude, sin * magnitude
    return cos, sin


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns `x` [T, heads, head_dim] by the angles of its tokens."""
    turning, rest = x, None
    if (size := 2 * cos.shape[-1]) < x.shape[-1]:
        turning, rest = x[..., :size], x[..., size:]
    first, second = jnp.split(turning.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)
    return turned if rest is None else jnp.concatenate([turned, rest], axis=-1)
