"""The parts of a decoder layer: parameters, their names and axes, and what they do.

All layers are one module whose parameters have a leading layer axis; in a forward pass
they are those of one layer. A part that a model's configuration does not have is None.
Each parameter carries as metadata how it may be sharded and how it is drawn.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jserve_models import rope
from jserve_models.attention import AttentionBackend
from jserve_models.config import ModelConfig
from jserve_models.matrices import Matrix, grouped_product, product
from jserve_models.steps import KvCache, StepLayout

_Q_GAIN = 2.0  # drawn attention is then peaked enough for context to matter

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}
"""What the gate of a feed-forward part goes through, by name."""


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
    """Projections `x @ kernel + bias` of all layers; kernels are [L, ..., in, out].

    In a forward pass the kernel is that of one layer, and may be quantised. Kernels of
    experts have an axis more.
    """

    def __init__(
        self,
        num_layers: int,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        dtype: jax.typing.DTypeLike,
        *,
        has_bias: bool = False,
        gain: float = 1.0,
    ):
        draw = Draw(std=gain * shape[-2] ** -0.5)
        self.kernel = parameter((num_layers, *shape), ("layers", *axes), draw, dtype)
        size, outer = (num_layers, *shape[:-2], shape[-1]), (*axes[:-2], axes[-1])
        self.bias = (
            parameter(size, ("layers", *outer), Draw(), dtype) if has_bias else None
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
        config: ModelConfig,
        dtype: jax.typing.DTypeLike,
        axis: str | None = None,
    ):
        """Makes one.

        Args:
          axis: What the last axis counts, as in `parameter`.
        """
        axes = (*("layers" for _ in leading), axis)
        self.has_offset = config.norm_offset
        draw = Draw(mean=0.0 if self.has_offset else 1.0)
        self.weight = parameter((*leading, size), axes, draw, dtype)
        self.eps = config.rms_norm_eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises in float32, whatever the type of `x`."""
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        unit = wide * jax.lax.rsqrt(mean_square + self.eps)
        if self.has_offset:
            return (unit * (1 + self.weight[...].astype(jnp.float32))).astype(x.dtype)
        return unit.astype(x.dtype) * self.weight[...]


def normalised(norm: RmsNorm | None, x: jax.Array) -> jax.Array:
    """Returns what a norm, if there is one, makes of `x`."""
    return x if norm is None else norm(x)


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
        self.o = linear((q_size, hidden), ("heads", None), has_bias=config.o_bias)
        leading = (config.num_layers,)
        norm = functools.partial(RmsNorm, leading, config=config, dtype=dtype)
        is_wide = self.has_wide_norm = config.wide_qk_norm
        sizes = (q_size, kv_size) if is_wide else (config.head_dim, config.head_dim)
        axes = ("heads", "kv_heads") if is_wide else (None, None)
        has_norm = config.qk_norm or is_wide
        self.q_norm = norm(sizes[0], axis=axes[0]) if has_norm else None
        self.k_norm = norm(sizes[1], axis=axes[1]) if has_norm else None
        shape = (config.num_layers, config.num_heads)
        self.sinks = (
            parameter(shape, ("layers", "heads"), Draw(std=1.0), dtype)
            if config.sinks
            else None
        )
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        self.soft_cap = config.attention_soft_cap
        self.scale = (
            config.head_dim**-0.5
            if config.attention_scale is None
            else config.attention_scale
        )

    def heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns q, k and v of `x` [T, hidden], each [T, heads, head_dim]."""
        num_tokens = x.shape[0]
        wide, narrow = (self.q_norm, self.k_norm), (None, None)
        if not self.has_wide_norm:
            wide, narrow = narrow, wide
        q = normalised(wide[0], self.q(x))
        q = q.reshape(num_tokens, self.num_heads, self.head_dim)
        k = normalised(wide[1], self.k(x))
        k = k.reshape(num_tokens, self.num_kv_heads, self.head_dim)
        v = self.v(x).reshape(num_tokens, self.num_kv_heads, self.head_dim)
        q, k = normalised(narrow[0], q), normalised(narrow[1], k)
        return q, k, v

    def __call__(
        self,
        x: jax.Array,
        kv: KvCache,
        layer: jax.Array,
        layout: StepLayout,
        angles: tuple[jax.Array, jax.Array] | None,
        backend: AttentionBackend,
        window: int | None = None,
    ) -> tuple[jax.Array, KvCache]:
        """Writes the step's keys and values, then attends; `x` is [T, hidden].

        Args:
          angles: Those of `rope.angles`; None turns nothing.
          window: Number of keys that a query sees; None for all.
        """
        q, k, v = self.heads(x)
        if angles is not None:
            q, k = rope.rotate(q, *angles), rope.rotate(k, *angles)
        out, kv = backend.attend(
            *(q, k, v, kv, layout, layer),
            scale=self.scale,
            window=window,
            soft_cap=self.soft_cap,
            sinks=None if self.sinks is None else self.sinks[...].astype(jnp.float32),
        )
        return self.o(out.reshape(x.shape[0], -1)), kv


class FeedForward(nnx.Module):
    """The gated part of a layer: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: ModelConfig, dtype: jax.typing.DTypeLike):
        hidden, wide = config.hidden_size, config.intermediate_size
        linear = functools.partial(
            Linear, config.num_layers, dtype=dtype, has_bias=config.mlp_bias
        )
        self.gate = linear((hidden, wide), (None, "mlp"))
        self.up = linear((hidden, wide), (None, "mlp"))
        self.down = linear((wide, hidden), ("mlp", None))
        self.activate = ACTIVATIONS[config.activation]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies it to each token of `x` [T, hidden]."""
        return self.down(self.activate(self.gate(x)) * self.up(x))


class ExpertFeedForward(nnx.Module):
    """A feed-forward part that sums, for each token, a few of many experts.

    The router's softmax weighs them (Shazeer et al., 2017, section 2.1).
    """

    def __init__(self, config: ModelConfig, dtype: jax.typing.DTypeLike):
        assert config.experts is not None
        hidden, wide = config.hidden_size, config.intermediate_size
        self.experts = config.experts
        count = self.experts.count
        linear = functools.partial(
            Linear, config.num_layers, dtype=dtype, has_bias=config.mlp_bias
        )
        self.router = linear((hidden, count), (None, None))
        self.gate = linear((count, hidden, wide), (None, None, "mlp"))
        self.up = linear((count, hidden, wide), (None, None, "mlp"))
        self.down = linear((count, wide, hidden), (None, "mlp", None))
        self.activation = config.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies it to each token of `x` [T, hidden]."""
        shares = jax.nn.softmax(self.router(x).astype(jnp.float32))
        best, chosen = jax.lax.top_k(shares, self.experts.per_token)
        if self.experts.renormalises:
            best /= best.sum(axis=-1, keepdims=True)
        found: jax.Array = jax.lax.platform_dependent(
            *(x, best.astype(x.dtype), chosen),
            cpu=functools.partial(self._one_by_one, leaves_out=True),
            tpu=self._grouped,
            default=self._one_by_one,
        )
        return found

    def _grouped(self, x: jax.Array, best: jax.Array, chosen: jax.Array) -> jax.Array:
        """Groups tokens by expert; `best` are the weights of `chosen`, [T, k]."""
        experts = chosen.reshape(-1)
        order = jnp.argsort(experts, stable=True)
        rows, sorted_experts = x[order // chosen.shape[1]], experts[order]
        sizes = jnp.bincount(experts, length=self.experts.count).astype(jnp.int32)

        def project(part: Linear, rows: jax.Array) -> jax.Array:
            y = grouped_product(rows, part.kernel.get_value(), sizes, sorted_experts)
            return y if part.bias is None else y + part.bias[...][sorted_experts]

        rows = self._fed(rows, project)[jnp.argsort(order)]
        return (rows.reshape(*chosen.shape, -1) * best[..., None]).sum(axis=1)

    def _one_by_one(
        self,
        x: jax.Array,
        best: jax.Array,
        chosen: jax.Array,
        *,
        leaves_out: bool = False,
    ) -> jax.Array:
        """Takes one expert after the other.

        Without a kernel of its own `ragged_dot` would write the tokens once for each.

        Args:
          leaves_out: Whether experts without a token are left out; a branch costs more
            than it spares where the host decides.
        """
        tokens = jnp.arange(len(x))[:, None]
        shares = jnp.zeros((len(x), self.experts.count), x.dtype)
        shares = shares.at[tokens, chosen].set(best)

        def add(expert: jax.Array, total: jax.Array) -> jax.Array:
            def project(part: Linear, rows: jax.Array) -> jax.Array:
                whole: Matrix = part.kernel.get_value()
                y = product(rows, jax.tree.map(lambda leaf: leaf[expert], whole))
                return y if part.bias is None else y + part.bias[...][expert]

            return total + self._fed(x, project) * shares[:, expert, None]

        def add_if_taken(expert: jax.Array, total: jax.Array) -> jax.Array:
            is_taken = jnp.any(shares[:, expert] > 0)
            added: jax.Array = jax.lax.cond(
                *(is_taken, add, lambda _, total: total, expert, total)
            )
            return added

        body = add_if_taken if leaves_out else add
        found: jax.Array = jax.lax.fori_loop(
            0, self.experts.count, body, jnp.zeros_like(x)
        )
        return found

    def _fed(
        self, x: jax.Array, project: Callable[[Linear, jax.Array], jax.Array]
    ) -> jax.Array:
        """Returns what experts make of `x`, by way of their projections."""
        gate, up = project(self.gate, x), project(self.up, x)
        if self.activation == "clamped":  # gpt-oss
            gate, up = jnp.minimum(gate, 7.0), jnp.clip(up, -7.0, 7.0)
            wide = gate * jax.nn.sigmoid(1.702 * gate) * (up + 1)
        else:
            wide = ACTIVATIONS[self.activation](gate) * up
        return project(self.down, wide)


class DecoderLayer(nnx.Module):
    """Attention and feed-forward, each between norms and around a residual."""

    def __init__(self, config: ModelConfig, dtype: jax.typing.DTypeLike):
        leading, hidden = (config.num_layers,), config.hidden_size
        norm = functools.partial(RmsNorm, leading, hidden, config, dtype)
        self.attention_norm = norm() if config.pre_norms else None
        self.attention = Attention(config, dtype)
        self.attention_post_norm = norm() if config.post_norms else None
        self.feed_forward_norm = norm() if config.pre_norms else None
        part = FeedForward if config.experts is None else ExpertFeedForward
        self.feed_forward = part(config, dtype)
        self.feed_forward_post_norm = norm() if config.post_norms else None
