"""Ways to break the product, each of which the gate has to notice.

A function here changes the product in the process that compiles; see `compiling.Job`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jserve.engine import programs
from jserve_models import decoder, rope
from jserve_models.attention import page_loop
from jserve_models.decoder import Decoder
from jserve_models.sharding import placement
from jserve_models.steps import KvCache, StepInputs, StepShape, lay_out


def loops_outside_graphs() -> None:
    """Leaves to XLA what becomes part of a CUDA graph on GPU."""
    programs._COMPILER_OPTIONS.clear()


def discard_page_past_the_end() -> None:
    """Takes each layer's discard page for one that requests may have."""
    backend: Any = page_loop
    backend.pool_size = lambda kv, num_layers: (
        kv[0].shape[0] // num_layers,
        kv[0].shape[1],
    )


def results_unplaced() -> None:
    """Leaves it to the compiler where the results of programs are."""
    engine: Any = programs.Programs
    signature = engine._signature
    engine._signature = lambda self, program: (*signature(self, program)[:3], None)


def layers_scanned() -> None:
    """Runs the layers as a scan over stacked weights."""
    leaf: Any = decoder.Leaf
    structure: Any = Decoder
    leaf.abstract = lambda self, mesh, dtype, _: jax.ShapeDtypeStruct(
        self.shape, dtype, sharding=placement(mesh)
    )
    structure.forward = _scanned_forward


def _scanned_forward(
    self: Decoder,
    leaves: Sequence[Any],
    kv: KvCache,
    inputs: StepInputs,
    shape: StepShape,
) -> tuple[jax.Array, KvCache]:
    num_layers = self.config.num_layers
    num_pages, page_size = self.attention.pool_size(kv, num_layers)
    layout = lay_out(inputs, shape, num_pages, page_size)
    angles = rope.angles(self.config, layout.positions)
    places = [
        place for place, leaf in enumerate(self.leaves) if leaf.axes[0] == "layers"
    ]

    def one_layer(carry, xs):
        x, kv = carry
        index, parts = xs
        arrays = list(leaves)
        for place, part in zip(places, parts, strict=True):
            arrays[place] = part
        layer = self._weights(arrays).layers
        attended, kv = layer.attention(
            layer.attention_norm(x), kv, index, layout, angles, self.attention
        )
        x = x + attended
        return (x + layer.feed_forward(layer.feed_forward_norm(x)), kv), None

    x = leaves[0][inputs.tokens]
    layers = (jnp.arange(num_layers), [leaves[place] for place in places])
    (x, kv), _ = jax.lax.scan(one_layer, (x, kv), layers)
    return self._weights(leaves).norm(x[layout.logit_token]), kv
