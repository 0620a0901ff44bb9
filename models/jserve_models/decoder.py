"""The Llama-style decoder: one forward for prefill blocks and decode rows together.

The modules only define parameters; an engine holds them as a list of arrays
(`Decoder.leaves` order), because handing a module to `jit` costs milliseconds a
step. Each layer has arrays of its own and stands in the program by itself: a loop over
stacked weights would copy every layer's before their use, once a step.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jserve_models import rope
from jserve_models.attention import AttentionBackend, cpu
from jserve_models.config import ModelConfig
from jserve_models.layers import DecoderLayer, Draw, RmsNorm, parameter
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
        self.norm = RmsNorm((), hidden, config.rms_norm_eps, dtype)
        self.head = (
            None
            if config.tie_embeddings
            else parameter((hidden, vocab), (None, "vocab"), head_draw, dtype)
        )


Weight = jax.Array | tuple[jax.Array, ...]
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

    def place(self, host: np.ndarray) -> Weight:
        """Puts the parameter on the device."""
        if self.axes[0] == "layers":
            return tuple(jnp.asarray(part) for part in host)
        return jnp.asarray(host)


class Decoder:
    """A model's structure without its weights; its `forward` is pure."""

    def __init__(self, config: ModelConfig, attention: AttentionBackend = cpu):
        """Makes one whose cache is that of the attention backend."""
        self._config = config
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
        num_pages, page_size = self.attention.pool_size(kv, self._config.num_layers)
        layout = lay_out(inputs, shape, num_pages, page_size)
        angles = rope.angles(self._config, layout.positions)
        x = self._weights(leaves).embedding[...][inputs.tokens]
        for index in range(self._config.num_layers):
            layer = self._weights(leaves, index).layers
            attended, kv = layer.attention(
                layer.attention_norm(x),
                kv,
                jnp.int32(index),
                layout,
                angles,
                self.attention,
            )
            x = x + attended
            x = x + layer.feed_forward(layer.feed_forward_norm(x))
        return self._weights(leaves).norm(x[layout.logit_token]), kv

    def logits(self, leaves: Sequence[Weight], hidden: jax.Array) -> jax.Array:
        """Returns float32 logits [..., vocab] of what `forward` returned."""
        weights = self._weights(leaves)
        head = weights.embedding[...].T if weights.head is None else weights.head[...]
        return jnp.matmul(hidden, head, preferred_element_type=jnp.float32)

    def _weights(self, leaves: Sequence[Weight], layer: int = 0) -> DecoderWeights:
        """Returns the parameters, those of layers for one of them."""
        arrays = [leaf[layer] if isinstance(leaf, tuple) else leaf for leaf in leaves]
        found: DecoderWeights = nnx.merge(
            self._graph, jax.tree.unflatten(self._tree, arrays)
        )
        return found
