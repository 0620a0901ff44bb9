"""The parts of a decoder layer: parameters, their names and axes, and what they do.

All layers are one module whose parameters have a leading layer axis; the decoder
scans over it, so a program has a dozen parameters whatever its depth. Each
parameter carries as metadata how it may be sharded and how it is drawn.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jserve_models import rope
from jserve_models.attention import AttentionBackend
from jserve_models.config import ModelConfig
from jserve_models.matrices import Matrix, product
from jserve_models.steps import KvCache, StepLayout

_Q_GAIN = 2.0  # drawn attention is then peaked enough for context to matter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """How a parameter without a checkpoint is filled: `mean` plus `std` noise."""

    mean: float = 0.0
    std: float = 0.0


def parameter(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    draw: Draw,
    dtype: jax.typing.DTypeLike,
) -> nnx.Param[jax.Array]:
    """Returns a parameter of zeros.

    Args:
      axes: For each dimension the name of what it counts ("vocab", "heads", ...),
        or None for one that is never sharded.
    """
    return nnx.Param(jnp.zeros(shape, dtype), logical_axes=axes, draw=draw)


class Linear(nnx.Module):
    """Projections `x @ kernel + bias` of all layers; kernels are [L, in, out].

    In a forward pass the kernel is that of one layer, and may be quantised.
    """

    def __init__(
        self,
        num_layers: int,
        shape: tuple[int, int],
        axes: tuple[str | None, str | None],
        dtype: jax.typing.DTypeLike,
        *,
        has_bias: bool = False,
        gain: float = 1.0,
    ):
        draw = Draw(std=gain * shape[0] ** -0.5)
        self.kernel = parameter((num_layers, *shape), ("layers", *axes), draw, dtype)
        self.bias = (
            parameter((num_layers, shape[1]), ("layers", axes[1]), Draw(), dtype)
            if has_bias
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Projects the last axis, with this layer's slice of the kernel."""
        kernel: Matrix = self.kernel.get_value()
        y = product(x, kernel)
        return y if self.bias is None else y + self.bias[...]


class RmsNorm(nnx.Module):
    """Scales the last axis to unit mean square, then by a weight."""

    def __init__(
        self,
        leading: tuple[int, ...],
        size: int,
        eps: float,
        dtype: jax.typing.DTypeLike,
    ):
        axes = (*("layers" for _ in leading), None)
        self.weight = parameter((*leading, size), axes, Draw(mean=1.0), dtype)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises in float32, whatever the type of `x`."""
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean_square + self.eps)).astype(
            x.dtype
        ) * self.weight[...]


class Attention(nnx.Module):
    """Self-attention over the paged cache, grouped queries."""

    def __init__(self, config: ModelConfig, dtype: jax.typing.DTypeLike):
        hidden, bias = config.hidden_size, config.qkv_bias
        q_size = config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        linear = functools.partial(Linear, config.num_layers, dtype=dtype)
        # Three kernels, not one: a fused one would be cut across tensor shards.
        self.q = linear((hidden, q_size), (None, "heads"), has_bias=bias, gain=_Q_GAIN)
        self.k = linear((hidden, kv_size), (None, "kv_heads"), has_bias=bias)
        self.v = linear((hidden, kv_size), (None, "kv_heads"), has_bias=bias)
        self.o = linear((q_size, hidden), ("heads", None))
        norm = (config.num_layers,), config.head_dim, config.rms_norm_eps, dtype
        self.q_norm = RmsNorm(*norm) if config.qk_norm else None
        self.k_norm = RmsNorm(*norm) if config.qk_norm else None
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        self.scale = (
            config.head_dim**-0.5
            if config.attention_scale is None
            else config.attention_scale
        )

    def __call__(
        self,
        x: jax.Array,
        kv: KvCache,
        layer: jax.Array,
        layout: StepLayout,
        angles: tuple[jax.Array, jax.Array],
        backend: AttentionBackend,
    ) -> tuple[jax.Array, KvCache]:
        """Writes the step's keys and values, then attends; `x` is [T, hidden]."""
        num_tokens = x.shape[0]
        q = self.q(x).reshape(num_tokens, self.num_heads, self.head_dim)
        k = self.k(x).reshape(num_tokens, self.num_kv_heads, self.head_dim)
        v = self.v(x).reshape(num_tokens, self.num_kv_heads, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rope.rotate(q, *angles), rope.rotate(k, *angles)
        out, kv = backend.attend(q, k, v, kv, layout, layer, scale=self.scale)
        return self.o(out.reshape(num_tokens, -1)), kv


class FeedForward(nnx.Module):
    """The gated part of a layer: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: ModelConfig, dtype: jax.typing.DTypeLike):
        num_layers, hidden = config.num_layers, config.hidden_size
        wide = config.intermediate_size
        self.gate = Linear(num_layers, (hidden, wide), (None, "mlp"), dtype)
        self.up = Linear(num_layers, (hidden, wide), (None, "mlp"), dtype)
        self.down = Linear(num_layers, (wide, hidden), ("mlp", None), dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies it to each token of `x` [T, hidden]."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class DecoderLayer(nnx.Module):
    """Attention and feed-forward, each after a norm and around a residual."""

    def __init__(self, config: ModelConfig, dtype: jax.typing.DTypeLike):
        norm = (config.num_layers,), config.hidden_size, config.rms_norm_eps, dtype
        self.attention_norm = RmsNorm(*norm)
        self.attention = Attention(config, dtype)
        self.feed_forward_norm = RmsNorm(*norm)
        self.feed_forward = FeedForward(config, dtype)
