"""The decoder: one forward for prefill blocks and decode rows together.

The modules only define parameters; an engine holds them as a list of arrays
(`Decoder.leaves` order), because handing a module to `jit` costs milliseconds a
step. Each layer has arrays of its own and stands in the program by itself: a loop over
stacked weights would copy every layer's before their use, once a step.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jserve_models import rope, sharding
from jserve_models.attention import AttentionBackend, cpu
from jserve_models.config import ModelConfig
from jserve_models.layers import DecoderLayer, Draw, RmsNorm, normalised, parameter
from jserve_models.matrices import (
    LARGEST,
    Matrix,
    Quantised,
    dequantise,
    product,
    quantise,
)
from jserve_models.steps import KvCache, StepInputs, StepShape, lay_out

_LOGIT_STD = 2.0  # of drawn weights: argmax has a margin, sampling has a choice


class DecoderWeights(nnx.Module):
    """Every parameter of a decoder."""

    def __init__(self, config: ModelConfig, dtype: jax.typing.DTypeLike):
        vocab, hidden = config.vocab_size, config.hidden_size
        head_draw = Draw(std=_LOGIT_STD * hidden**-0.5)
        self.embedding = parameter(
            (vocab, hidden),
            ("vocab", None),
            head_draw if config.tie_embeddings else Draw(std=1.0),
            dtype,
        )
        self.layers = DecoderLayer(config, dtype)
        self.norm = RmsNorm((), hidden, config, dtype)
        self.head = (
            None
            if config.tie_embeddings
            else parameter((hidden, vocab), (None, "vocab"), head_draw, dtype)
        )


HostMatrix = np.ndarray | Quantised
Weight = Matrix | tuple[Matrix, ...]
"""A parameter on the device; one of layers is a tuple with an array for each."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Description of one parameter, without its value.

    Attributes:
      path: Name, such as "layers.attention.q.kernel".
      axes: What each dimension counts, or None if it is never sharded.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    draw: Draw

    @property
    def is_matrix(self) -> bool:
        """Whether it is, or has a layer's, [in, out] of a product."""
        return self.path == "head" or self.path.endswith(".kernel")

    def storage(self, weights: str) -> str:
        """Returns how it is stored; a router stays as precise as the computation."""
        is_small = self.is_matrix and ".router." not in self.path
        return weights if is_small else "auto"

    def place(
        self,
        host: HostMatrix | Iterable[HostMatrix],
        mesh: jax.sharding.Mesh,
        dtype: jax.typing.DTypeLike | None = None,
        weights: str = "auto",
    ) -> Weight:
        """Puts the parameter on its devices, the arrays of its layers one by one.

        Args:
          host: Array, or for a parameter of layers their arrays in turn; a matrix may
            be quantised.
          dtype: Type that it is cast to; None takes it as it is.
          weights: Storage of matrices, of `matrices.STORAGES`; other than "auto" it
            stands in for `dtype`.
        """
        storage = self.storage(weights)

        def put(part: HostMatrix) -> Matrix:
            if storage in LARGEST:
                whole = quantise(part, storage)
                found: Quantised = jax.tree.map(
                    lambda x: sharding.put(x, self._placement(x, mesh)), whole
                )
                return found
            cast_to = dtype if storage == "auto" else storage
            part = dequantise(part)
            return sharding.put(part, self._placement(part, mesh), cast_to)

        if self.axes[0] == "layers":
            return tuple(map(put, cast(Iterable[HostMatrix], host)))
        return put(cast(HostMatrix, host))

    def abstract(
        self, mesh: jax.sharding.Mesh, dtype: jax.typing.DTypeLike, weights: str
    ) -> Weight:
        """Returns the shapes of what `place` returns, and where it stands."""
        storage = self.storage(weights)
        num_layers = self.shape[0] if self.axes[0] == "layers" else 0
        shape = self.shape[1:] if num_layers else self.shape
        part = jax.ShapeDtypeStruct(shape, dtype)
        if storage in LARGEST:
            part = jax.eval_shape(lambda x: quantise(x, storage), part)
        elif storage != "auto":
            part = jax.ShapeDtypeStruct(shape, storage)
        placed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=self._placement(x, mesh)
            ),
            part,
        )
        return (placed,) * num_layers if num_layers else placed

    def _placement(self, part: Any, mesh: jax.sharding.Mesh) -> jax.sharding.Sharding:
        """Returns where an array of the parameter, or of its scales, stands."""
        return sharding.placement(mesh, self.axes[len(self.axes) - part.ndim :])


class Decoder:
    """A model's structure without its weights; its `forward` is pure."""

    def __init__(self, config: ModelConfig, attention: AttentionBackend = cpu):
        """Makes one whose cache is that of the attention backend."""
        self.config = config
        self._is_tied = config.tie_embeddings
        self.attention = attention
        abstract = nnx.eval_shape(lambda: DecoderWeights(config, jnp.float32))
        self._graph, state = nnx.split(abstract)
        _, self._tree = jax.tree.flatten(state)
        self.leaves = tuple(
            Leaf(
                path=".".join(str(part) for part in path),
                shape=tuple(variable.shape),
                axes=variable.get_metadata("logical_axes"),
                draw=variable.get_metadata("draw"),
            )
            for path, variable in nnx.to_flat_state(state)
        )

    def forward(
        self,
        leaves: Sequence[Weight],
        kv: KvCache,
        inputs: StepInputs,
        shape: StepShape,
    ) -> tuple[jax.Array, KvCache]:
        """Runs one step up to the head.

        Args:
          leaves: Parameters in the order of `self.leaves`.
          kv: The cache; donate it.

        Returns:
          [S, hidden] of the last real token of each wanted row (anything finite for
          padding), and the cache with the step's keys and values.
        """
        config = self.config
        num_pages, page_size = self.attention.pool_size(kv, config.num_layers)
        layout = lay_out(inputs, shape, num_pages, page_size)
        angles = rope.angles(config, layout.positions)
        local_angles = angles
        if config.local_rope_theta is not None:
            local_angles = rope.angles(config, layout.positions, is_local=True)
        x = self._weights(leaves).embedding[...][inputs.tokens]
        x = _scaled(x, config.embedding_scale)
        for index in range(config.num_layers):
            layer = self._weights(leaves, index).layers
            window, turned = config.window(index), angles
            if window is not None:
                turned = local_angles
            attended, kv = layer.attention(
                normalised(layer.attention_norm, x),
                kv,
                jnp.int32(index),
                layout,
                None if index in config.unrotated_layers else turned,
                self.attention,
                window,
            )
            attended = normalised(layer.attention_post_norm, attended)
            x = x + _scaled(attended, config.residual_scale)
            fed = layer.feed_forward(normalised(layer.feed_forward_norm, x))
            fed = normalised(layer.feed_forward_post_norm, fed)
            x = x + _scaled(fed, config.residual_scale)
        return self._weights(leaves).norm(x[layout.logit_token]), kv

    def head(self, leaves: Sequence[Weight]) -> Matrix:
        """Returns the parameter that `logits` takes."""
        paths = [leaf.path for leaf in self.leaves]
        found = leaves[paths.index("embedding" if self._is_tied else "head")]
        assert not isinstance(found, tuple)
        return found

    def logits(self, head: Matrix, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits [..., vocab] of what `forward` returned."""
        matrix = cast(jax.Array, head).T if self._is_tied else head
        found = product(hidden, matrix, jnp.float32)
        found = _scaled(found, self.config.logit_scale)
        if (cap := self.config.logit_soft_cap) is not None:
            found = cap * jnp.tanh(found / cap)
        return found

    def _weights(self, leaves: Sequence[Weight], layer: int = 0) -> DecoderWeights:
        """Returns the parameters, those of layers for one of them."""
        arrays = [leaf[layer] if isinstance(leaf, tuple) else leaf for leaf in leaves]
        found: DecoderWeights = nnx.merge(
            self._graph, jax.tree.unflatten(self._tree, arrays)
        )
        return found


def _scaled(x: jax.Array, factor: float) -> jax.Array:
    """Returns `x` times a factor of its type."""
    return x if factor == 1 else x * jnp.asarray(factor, x.dtype)
