"""The Llama-style decoder: one forward for prefill blocks and decode rows together.

The modules only define parameters; an engine holds them as a flat list of arrays
(`Decoder.leaves` order), because handing a module to `jit` costs milliseconds a
step. The layers run in one `lax.scan` whose carry holds the whole flat cache: as
a scanned input or output it would be copied each step.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jserve_models import rope
from jserve_models.attention import Attend, reference
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


class Decoder:
    """A model's structure without its weights; its `forward` is pure."""

    def __init__(self, config: ModelConfig, attend: Attend = reference.attend):
        self._config = config
        self._attend = attend
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
        leaves: Sequence[jax.Array],
        kv: KvCache,
        inputs: StepInputs,
        shape: StepShape,
    ) -> tuple[jax.Array, KvCache]:
        """Runs one step.

        Args:
          leaves: Parameters in the order of `self.leaves`.
          kv: The cache; donate it.

        Returns:
          float32 logits [S, vocab] of the last real token of each wanted row
          (anything finite for padding), and the cache with the step's keys and
          values.
        """
        config = self._config
        weights = nnx.merge(self._graph, jax.tree.unflatten(self._tree, leaves))
        num_pages, page_size = kv[1].shape[0] // config.num_layers, kv[1].shape[2]
        layout = lay_out(inputs, shape, num_pages, page_size)
        angles = rope.angles(config, layout.positions)
        layer_graph, stacked = nnx.split(weights.layers)

        def one_layer(
            carry: tuple[jax.Array, KvCache], scanned: tuple[jax.Array, Any]
        ) -> tuple[tuple[jax.Array, KvCache], None]:
            (x, kv), (index, state) = carry, scanned
            layer = nnx.merge(layer_graph, state)
            attended, kv = layer.attention(
                layer.attention_norm(x),
                kv,
                index,
                layout,
                angles,
                num_pages,
                self._attend,
            )
            x = x + attended
            return (x + layer.feed_forward(layer.feed_forward_norm(x)), kv), None

        x = weights.embedding[...][inputs.tokens]
        indices = jnp.arange(config.num_layers, dtype=jnp.int32)
        (x, kv), _ = jax.lax.scan(one_layer, (x, kv), (indices, stacked))
        x = weights.norm(x[layout.logit_token])
        head = weights.embedding[...].T if weights.head is None else weights.head[...]
        return jnp.matmul(x, head, preferred_element_type=jnp.float32), kv
