"""From a name or a folder to a model that can run.

A name brings trained weights if the package has them, else draws them from a seed; a
folder in Hugging Face's form brings its own.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jserve_models import (
    decoder,
    hf_config,
    hf_weights,
    random_weights,
    toy,
    trained_weights,
)
from jserve_models.attention import AttentionBackend, CacheShapes, cpu
from jserve_models.config import NAMED, ModelConfig
from jserve_models.decoder import Weight
from jserve_models.matrices import Matrix
from jserve_models.steps import KvCache, StepInputs, StepShape

Forward = Callable[
    [Sequence[Weight], KvCache, StepInputs, StepShape], tuple[jax.Array, KvCache]
]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """A model and its weights; equal only to itself.

    Attributes:
      leaves: Weights, in the order in which `forward` takes them.
      forward: Pure function that runs one step, traceable with any leaves. Returns
        [S, ...] of the last real token of each wanted row, and the cache.
      row: Shape and type of one such row, without the axis S.
      head: Weight that `logits` takes.
      logits: Pure function from the head's weight and rows of what `forward` returned
        to float32 logits [S, vocab].
      attention: Backend whose cache `forward` takes.
      weights: Storage of the matrices, of `matrices.STORAGES`.
    """

    config: ModelConfig
    leaves: Sequence[Weight]
    forward: Forward
    row: jax.ShapeDtypeStruct
    head: Matrix
    logits: Callable[[Matrix, jax.Array], jax.Array]
    attention: AttentionBackend
    weights: str = "auto"

    def kv_shapes(self, num_pages: int, page_size: int) -> CacheShapes:
        """Returns the shapes of the arrays of the KV cache."""
        return self.attention.kv_shapes(self.config, num_pages, page_size)

    def new_kv(
        self, num_pages: int, page_size: int, dtype: jax.typing.DTypeLike
    ) -> KvCache:
        """Returns an empty cache.

        It holds zeros because attention multiplies what it masks by zero: a NaN left
        in a fresh page would not vanish.
        """
        shapes = self.kv_shapes(num_pages, page_size)
        return tuple(jnp.zeros(shape, dtype) for shape in shapes)


def model_config(name_or_path: str) -> ModelConfig:
    """Returns the configuration of a model, without its weights.

    Raises:
      ValueError: If there is no such name or folder, or the folder's model is not
        supported.
    """
    config = NAMED.get(name_or_path)
    return config or hf_config.read_config(_folder(name_or_path))


def load_model(
    name_or_path: str,
    *,
    seed: int | None,
    dtype: jax.typing.DTypeLike,
    weights: str = "auto",
    attention: AttentionBackend = cpu,
) -> LoadedModel:
    """Loads a model.

    Args:
      name_or_path: Key of `config.NAMED`, or a folder with `config.json` and
        `model.safetensors` or its sharded index.
      seed: Seed of random weights of a named size. None takes trained weights where the
        package has them, else seed 0. A folder ignores it.
      dtype: Type of the computation, and of the weights but for `weights`; those that
        are read are cast.
      weights: Storage of the matrices, of `matrices.STORAGES`.
      attention: Backend; the toy, which adds instead of attending, ignores it.

    Raises:
      ValueError: If there is no such name or folder, or the folder's model is not
        supported.
    """
    config = model_config(name_or_path)
    if config is toy.TOY:
        values = toy.toy_leaves()
        return LoadedModel(
            config=config,
            leaves=values,
            forward=toy.forward,
            row=jax.ShapeDtypeStruct((), jnp.int32),
            head=values[0],
            logits=toy.logits,
            attention=toy.ATTENTION,
        )
    structure = decoder.Decoder(config, attention)
    if name_or_path in NAMED:
        trained = trained_weights.packaged_checkpoint(name_or_path)
        if seed is None and trained is not None:
            hosts = trained_weights.read_trained(trained, structure.leaves, dtype)
        else:
            hosts = random_weights.draw_weights(structure.leaves, seed or 0, dtype)
        pairs = zip(structure.leaves, hosts, strict=True)
        leaves = [leaf.place(host, weights=weights) for leaf, host in pairs]
    else:
        folder = _folder(name_or_path)
        leaves = hf_weights.read_weights(
            folder, config, structure.leaves, dtype, weights
        )
    return decoder_model(structure, leaves, weights)


def abstract_model(
    config: ModelConfig,
    *,
    dtype: jax.typing.DTypeLike,
    sharding: jax.sharding.Sharding,
    attention: AttentionBackend,
    weights: str = "auto",
) -> LoadedModel:
    """Returns a model of weights without values: to be compiled, not to be run.

    Args:
      sharding: Placement of each weight; its devices need not be there.
      weights: Storage of the matrices, of `matrices.STORAGES`.
    """
    structure = decoder.Decoder(config, attention)
    placed = [
        jax.eval_shape(
            functools.partial(leaf.place, weights=weights),
            jax.ShapeDtypeStruct(leaf.shape, dtype),
        )
        for leaf in structure.leaves
    ]
    leaves = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), placed
    )
    return decoder_model(structure, leaves, weights)


def decoder_model(
    structure: decoder.Decoder, leaves: Sequence[Weight], weights: str = "auto"
) -> LoadedModel:
    """Returns a decoder with its weights; `weights` is how matrices are stored."""
    paths = [leaf.path for leaf in structure.leaves]
    dtype = jax.tree.leaves(leaves[paths.index("embedding")])[0].dtype
    return LoadedModel(
        config=structure.config,
        leaves=leaves,
        forward=structure.forward,
        row=jax.ShapeDtypeStruct((structure.config.hidden_size,), dtype),
        head=structure.head(leaves),
        logits=structure.logits,
        attention=structure.attention,
        weights=weights,
    )


def _folder(path: str) -> pathlib.Path:
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"model {path!r} is neither a folder nor one of {', '.join(sorted(NAMED))}"
        )
    return folder
