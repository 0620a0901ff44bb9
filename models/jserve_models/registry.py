"""From a name or a folder to a model that can run.

A name brings trained weights if the package has them, else draws them from a seed; a
folder in Hugging Face's form brings its own.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh

from jserve_models import (
    decoder,
    random_weights,
    sharding,
    toy,
    trained_weights,
)
from jserve_models.attention import AttentionBackend, CacheShapes, cpu
from jserve_models.config import NAMED, ModelConfig
from jserve_models.decoder import Weight
from jserve_models.hf import read_config
from jserve_models.hf.folders import find_folder
from jserve_models.hf.weights import read_weights
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
      mesh: Devices that share the model.
      weights: Storage of the matrices, of `matrices.STORAGES`.
    """

    config: ModelConfig
    leaves: Sequence[Weight]
    forward: Forward
    row: jax.ShapeDtypeStruct
    head: Matrix
    logits: Callable[[Matrix, jax.Array], jax.Array]
    attention: AttentionBackend
    mesh: Mesh
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
        where = sharding.placement(self.mesh, self.attention.KV_AXES)
        return tuple(jnp.zeros(shape, dtype, device=where) for shape in shapes)


def model_config(name_or_path: str, max_len: int = 0) -> ModelConfig:
    """Returns the configuration of a model, without its weights.

    Args:
      max_len: Most tokens that will be served, as for `hf.read_config`.

    Raises:
      ValueError: If there is no such name or folder, or the folder's model is not
        supported.
    """
    config = NAMED.get(name_or_path)
    return config or read_config(_folder(name_or_path), max_len)


def load_model(
    name_or_path: str,
    *,
    seed: int | None,
    dtype: jax.typing.DTypeLike,
    weights: str = "auto",
    attention: AttentionBackend = cpu,
    mesh: Mesh | None = None,
    max_len: int = 0,
) -> LoadedModel:
    """Loads a model.

    Args:
      name_or_path: Key of `config.NAMED`, a folder with `config.json` and
        `model.safetensors`, its sharded index or the Orbax checkpoint `checkpoint`, a
        GGUF file, or ORG/NAME of the hub.
      seed: Seed of random weights of a named size. None takes trained weights where the
        package has them, else seed 0. A folder ignores it.
      dtype: Type of the computation, and of the weights but for `weights`; those that
        are read are cast.
      weights: Storage of the matrices, of `matrices.STORAGES`.
      attention: Backend; the toy, which adds instead of attending, ignores it.
      mesh: Devices that share the model; None is the first one.
      max_len: Most tokens that will be served, as for `hf.read_config`.

    Raises:
      ValueError: If there is no such name or folder, the folder's model is not
        supported, or the devices cannot share it evenly.
    """
    mesh = mesh or sharding.make_mesh()
    config = model_config(name_or_path, max_len)
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
            mesh=mesh,
        )
    structure = _structure(config, attention, mesh)
    hosts = host_weights(name_or_path, config, seed, dtype)
    times = structure.config.num_kv_heads // config.num_kv_heads
    leaves = []
    for leaf, host in zip(structure.leaves, hosts, strict=True):
        if times > 1 and leaf.axes[-1] == "kv_heads":
            repeat = functools.partial(
                sharding.repeat_heads, head_dim=config.head_dim, times=times
            )
            host = map(functools.partial(jax.tree.map, repeat), cast(Any, host))
        try:
            leaves.append(leaf.place(host, mesh, dtype, weights))
        except sharding.NotFiniteError as error:
            hosts.throw(error)  # what reads them knows file and name
    return decoder_model(structure, leaves, weights, mesh)


def host_weights(
    name_or_path: str,
    config: ModelConfig,
    seed: int | None,
    dtype: jax.typing.DTypeLike,
) -> Generator[Any]:
    """Yields a model's weights as `Leaf.place` takes them, in the order of leaves.

    Args:
      seed: As of `load_model`.
      dtype: Type of those that are not a folder's tensors, which come as they are.
    """
    leaves = decoder.Decoder(config).leaves
    if name_or_path in NAMED:
        checkpoint = trained_weights.packaged_checkpoint(name_or_path)
        if seed is not None or checkpoint is None:
            return random_weights.draw_weights(leaves, seed or 0, dtype)
    else:
        folder = _folder(name_or_path)
        checkpoint = folder / trained_weights.CHECKPOINT
        if not checkpoint.is_dir() or any(folder.glob("model*.safetensors")):
            return read_weights(folder, config, leaves)
    return trained_weights.read_trained(checkpoint, leaves, dtype)


def abstract_model(
    config: ModelConfig,
    *,
    dtype: jax.typing.DTypeLike,
    mesh: Mesh,
    attention: AttentionBackend,
    weights: str = "auto",
) -> LoadedModel:
    """Returns a model of weights without values: to be compiled, not to be run.

    Args:
      mesh: Devices that share the model; they need not be there.
      weights: Storage of the matrices, of `matrices.STORAGES`.

    Raises:
      ValueError: If the devices cannot share it evenly.
    """
    structure = _structure(config, attention, mesh)
    leaves = [leaf.abstract(mesh, dtype, weights) for leaf in structure.leaves]
    return decoder_model(structure, leaves, weights, mesh)


def _structure(
    config: ModelConfig, attention: AttentionBackend, mesh: Mesh
) -> decoder.Decoder:
    return decoder.Decoder(
        sharding.shared_config(config, mesh.size),
        sharding.share_attention(attention, mesh),
    )


def decoder_model(
    structure: decoder.Decoder,
    leaves: Sequence[Weight],
    weights: str = "auto",
    mesh: Mesh | None = None,
) -> LoadedModel:
    """Returns a decoder with its weights.

    Args:
      weights: How matrices are stored.
      mesh: Devices that share them; None is the first one.
    """
    mesh = mesh or sharding.make_mesh()
    paths = [leaf.path for leaf in structure.leaves]
    dtype = jax.tree.leaves(leaves[paths.index("embedding")])[0].dtype

    def logits(head: Matrix, hidden: jax.Array) -> jax.Array:
        # Tokens are drawn on each device, in the same way as on one.
        found = structure.logits(head, hidden)
        if mesh.size == 1:
            return found
        # Logits go between devices, and not the head.
        for axes in ((None, "vocab"), ()):
            where = sharding.placement(mesh, axes)
            found = jax.lax.with_sharding_constraint(found, where)
        # Row by row, as the sampler reads them; they come in parts of the vocabulary.
        layout = Layout(tuple(range(found.ndim)))
        return cast(jax.Array, with_layout_constraint(found, layout))

    return LoadedModel(
        config=structure.config,
        leaves=leaves,
        forward=structure.forward,
        row=jax.ShapeDtypeStruct((structure.config.hidden_size,), dtype),
        head=structure.head(leaves),
        logits=logits,
        attention=structure.attention,
        mesh=mesh,
        weights=weights,
    )


def _folder(path: str) -> pathlib.Path:
    folder = find_folder(path)
    if folder is None:
        raise ValueError(
            f"model {path!r} is neither a folder nor ORG/NAME of the Hugging Face hub, "
            f"nor one of {', '.join(sorted(NAMED))}"
        )
    return folder
