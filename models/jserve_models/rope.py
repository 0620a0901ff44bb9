"""Rotary position embedding: queries and keys turned by their position.

The two halves of a head form the pairs that turn, as in Hugging Face checkpoints.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jserve_models.config import LinearScaling, Llama3Scaling, ModelConfig


def frequencies(config: ModelConfig) -> np.ndarray:
    """Returns the angle per position of each pair, [head_dim / 2] float32."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    plain: np.ndarray = (1.0 / config.rope_theta**exponents).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    if isinstance(scaling, LinearScaling):
        return plain / np.float32(scaling.factor)
    return _llama3(plain, scaling)


def _llama3(plain: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    turns = scaling.original_max_len * plain / (2 * math.pi)  # in the trained context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    mixed: np.ndarray = keep * plain + (1 - keep) * plain / scaling.factor
    return mixed.astype(np.float32)


def angles(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns cosine and sine, each [T, 1, head_dim / 2] float32."""
    angle = positions.astype(jnp.float32)[:, None, None] * frequencies(config)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns `x` [T, heads, head_dim] by the angles of its tokens."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return turned.astype(x.dtype)
