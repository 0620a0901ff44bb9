"""Trains a decoder on bytes: the model that `--model=tiny` serves.

The parameters and layers are the server's; only attention differs, which is dense and
causal here. Kernels of the layers are trained by Muon (Jordan et al., 2024,
https://kellerjordan.github.io/posts/muon), all else by AdamW. The learning rate is flat
in the first half of the steps and then falls to 0; the last steps see long windows, so
that the model holds out at contexts beyond the short ones.

`B` windows of `S` tokens, `T = B * S`, `V` the vocabulary.
"""

import itertools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import orbax.checkpoint as ocp
from flax import nnx

from jserve_models import rope
from jserve_models.config import ModelConfig
from jserve_models.decoder import Decoder, DecoderWeights
from jserve_models.layers import normalised
from jserve_models.random_weights import draw_weights
from jserve_tools.training.config import ByteModelConfig
from jserve_tools.training.library_text import LibraryText

_WARM_UP_STEPS = 20
_JUDGE_EVERY = 25  # steps
_NUM_JUDGED = 32  # held-out windows at the end
_JUDGED_EDGES = (0, 64, 256, 1024, 2048)  # bytes before, in the report's groups
_CHUNK_BYTES = 2**24
_ZERO_AT_START = ("head", "attention.o.kernel", "feed_forward.down.kernel")

Leaves = list[jax.Array]


class Progress(NamedTuple):
    """State of a training; a tree of arrays.

    Attributes:
      leaves: Parameters in the order of `Decoder.leaves`, float32.
      optimiser: State of the optimiser.
      step: Number of steps done, `[]` int32.
    """

    leaves: Leaves
    optimiser: Any
    step: jax.Array


def training_logits(
    weights: DecoderWeights, config: ModelConfig, tokens: jax.Array
) -> jax.Array:
    """Returns the logits after each token, `[B, S, V]` float32, of tokens `[B, S]`."""
    num_windows, width = tokens.shape
    places = jnp.arange(width, dtype=jnp.int32)
    angles = rope.angles(config, jnp.tile(places, num_windows))
    scale = config.attention_scale or config.head_dim**-0.5
    layer_graph, stacked = nnx.split(weights.layers)

    def one_layer(x: jax.Array, state: Any) -> tuple[jax.Array, None]:
        layer = nnx.merge(layer_graph, state)
        attention, normed = layer.attention, normalised(layer.attention_norm, x)
        # Project, and turn by positions: heads are [T, heads, D] as in the server.
        q, k, v = attention.heads(normed)
        v = v.reshape(num_windows, width, *v.shape[1:])
        q, k = rope.rotate(q, *angles), rope.rotate(k, *angles)
        # Attend: each token to itself and those before it in its window.
        attended = jax.nn.dot_product_attention(
            q.reshape(num_windows, width, config.num_heads, config.head_dim),
            k.reshape(v.shape),
            v,
            scale=scale,
            is_causal=True,
        )
        x = x + attention.o(attended.reshape(len(x), -1))
        fed = layer.feed_forward(normalised(layer.feed_forward_norm, x))
        return x + fed, None

    x = weights.embedding[...][tokens.reshape(-1)]
    x, _ = jax.lax.scan(one_layer, x, stacked, unroll=True)
    x = weights.norm(x)
    head = weights.embedding[...].T if weights.head is None else weights.head[...]
    logits = jnp.matmul(x, head, preferred_element_type=jnp.float32)
    return logits.reshape(num_windows, width, -1)


class ByteModel:
    """A model's training on one text."""

    def __init__(self, model: ModelConfig, config: ByteModelConfig, text: LibraryText):
        self._model, self._config, self._text = model, config, text
        self._structure = Decoder(model)
        abstract = nnx.eval_shape(lambda: DecoderWeights(model, jnp.float32))
        self._graph, state = nnx.split(abstract)
        self._tree = jax.tree.structure(state)
        flat, down = config.num_steps - config.num_steps // 2, config.num_steps // 2
        self._schedule = optax.join_schedules(
            [
                optax.linear_schedule(0.0, 1.0, _WARM_UP_STEPS),
                optax.linear_schedule(1.0, 0.0, max(1, down)),
            ],
            [flat],
        )
        self._optimiser = optax.contrib.muon(
            lambda step: config.learning_rate * self._schedule(step),
            weight_decay=config.weight_decay,
            adam_learning_rate=lambda step: (
                config.adam_learning_rate * self._schedule(step)
            ),
            adam_b2=0.95,
            muon_weight_dimension_numbers=[
                optax.contrib.MuonDimensionNumbers(1, 2)
                if leaf.path.endswith(".kernel")
                else None
                for leaf in self._structure.leaves
            ],
        )
        self._train_step = jax.jit(self._step, donate_argnums=0)
        self._losses = jax.jit(self._token_losses)

    def start(self) -> Progress:
        """Returns the state before the first step: each layer adds nothing yet."""
        drawn = draw_weights(self._structure.leaves, self._config.seed, jnp.float32)
        leaves = [
            jnp.asarray(leaf * (not described.path.endswith(_ZERO_AT_START)))
            for leaf, described in zip(drawn, self._structure.leaves, strict=True)
        ]
        return Progress(leaves, self._optimiser.init(leaves), jnp.zeros((), jnp.int32))

    def _token_losses(self, leaves: Leaves, windows: jax.Array) -> jax.Array:
        """Returns the loss of each token but the first, in nats, `[B, S]`."""
        weights = nnx.merge(self._graph, jax.tree.unflatten(self._tree, leaves))
        logits = training_logits(weights, self._model, windows[:, :-1])
        losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(
            logits, windows[:, 1:]
        )
        return losses

    def _step(
        self, progress: Progress, windows: jax.Array
    ) -> tuple[Progress, jax.Array]:
        value, gradient = jax.value_and_grad(
            lambda leaves: self._token_losses(leaves, windows).mean()
        )(progress.leaves)
        updates, optimiser = self._optimiser.update(
            gradient, progress.optimiser, progress.leaves
        )
        leaves = optax.apply_updates(progress.leaves, updates)
        return Progress(leaves, optimiser, progress.step + 1), value

    def windows(self, step: int) -> np.ndarray:
        """Returns the windows of a step, `[B, S + 1]`."""
        config, rng = self._config, np.random.default_rng((self._config.seed, step))
        is_long = step >= config.num_steps - config.num_long_steps
        width = config.long_window_tokens if is_long else config.window_tokens
        count = config.batch_tokens // width
        num_chats = rng.binomial(count, config.chat_share)
        parts = (self._text.chats, num_chats), (self._text.sources, count - num_chats)
        return np.concatenate([one.windows(rng, n, width + 1) for one, n in parts])

    def run(
        self,
        held_out: LibraryText,
        on_step: Callable[[int], object] = lambda step: None,
    ) -> tuple[Progress, list[dict[str, float]]]:
        """Returns the state after all steps, and losses on the way.

        Args:
          held_out: Text to judge by, of which some windows are taken.
          on_step: Called with the number of steps done, after each.

        Returns:
          The last state, and rows of `step`, `train` and `held_out`, the last two in
          bits per byte.
        """
        config, progress = self._config, self.start()
        curve: list[dict[str, float]] = []
        rng = np.random.default_rng(0)
        judged = held_out.sources.windows(rng, 64, config.window_tokens + 1)
        recent: list[float] = []
        for step in range(1, config.num_steps + 1):
            progress, loss = self._train_step(progress, self.windows(step - 1))
            recent.append(float(loss))
            on_step(step)
            if step % _JUDGE_EVERY and step != config.num_steps:
                continue
            own = self._losses(progress.leaves, judged).mean()
            row = {"train": np.mean(recent), "held_out": own}
            bits = {name: float(nats) / math.log(2) for name, nats in row.items()}
            curve.append({"step": step, **bits})
            recent.clear()
        return progress, curve

    def judge(self, leaves: Leaves, held_out: LibraryText) -> dict[str, float]:
        """Returns bits per byte of held-out text, by what stands before a byte."""
        windows = held_out.sources.windows(
            np.random.default_rng(0), _NUM_JUDGED, _JUDGED_EDGES[-1] + 1
        )
        nats = np.concatenate(
            [self._losses(leaves, part) for part in np.split(windows, _NUM_JUDGED)]
        )
        bits = {"all": float(nats.mean()) / math.log(2)}
        for begin, end in itertools.pairwise(_JUDGED_EDGES):
            bits[f"{begin}:{end}"] = float(nats[:, begin:end].mean()) / math.log(2)
        return bits

    def save(self, folder: pathlib.Path, leaves: Leaves) -> None:
        """Writes the weights by path of a leaf; replaces an older checkpoint."""
        paths = [leaf.path for leaf in self._structure.leaves]
        save_weights(folder, dict(zip(paths, leaves, strict=True)))


def halved(leaves: Leaves) -> Leaves:
    """Returns weights in bfloat16, as they are saved and served."""
    return [leaf.astype(jnp.bfloat16) for leaf in leaves]


def save_weights(folder: pathlib.Path, weights: Mapping[str, Any]) -> None:
    """Writes weights by path of a leaf, in chunks that can be read one by one."""
    saved = dict(weights)
    pieces = {path: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES) for path in saved}
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(
            folder.absolute(),
            args=ocp.args.StandardSave(saved, save_args=pieces),
            force=True,
        )
