"""From a name or a folder to a model that can run.

A name brings trained weights if the package has them, else draws them from a seed; a
folder in Hugging Face's form brings its own.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import jax

from jserve_models import (
    decoder,
    hf_config,
    hf_weights,
    random_weights,
    toy,
    trained_weights,
)
from jserve_models.config import NAMED, ModelConfig
from jserve_models.steps import KvCache, StepInputs, StepShape

Forward = Callable[
    [Sequence[jax.Array], KvCache, StepInputs, StepShape], tuple[jax.Array, KvCache]
]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """A model and its weights; equal only to itself.

    Attributes:
      leaves: Weights, in the order in which `forward` takes them.
      forward: Pure function that runs one step, traceable with any leaves. Returns
        float32 logits [S, vocab] of the last real token of each wanted row, and the
        cache.
    """

    config: ModelConfig
    leaves: list[jax.Array]
    forward: Forward


def load_model(
    name_or_path: str, *, seed: int | None, dtype: jax.typing.DTypeLike
) -> LoadedModel:
    """Loads a model.

    Args:
      name_or_path: Key of `config.NAMED`, or a folder with `config.json` and
        `model.safetensors` or its sharded index.
      seed: Seed of random weights of a named size. None takes trained weights where the
        package has them, else seed 0. A folder ignores it.
      dtype: Type of the weights; those that are read are cast.

    Raises:
      ValueError: If there is no such name or folder, or the folder's model is not
        supported.
    """
    config = NAMED.get(name_or_path)
    if config is toy.TOY:
        return LoadedModel(config=config, leaves=toy.toy_leaves(), forward=toy.forward)
    if config is not None:
        structure = decoder.Decoder(config)
        trained = trained_weights.packaged_checkpoint(name_or_path)
        if seed is None and trained is not None:
            leaves = trained_weights.read_trained(trained, structure.leaves, dtype)
        else:
            leaves = random_weights.draw_weights(structure.leaves, seed or 0, dtype)
    else:
        folder = _folder(name_or_path)
        config = hf_config.read_config(folder)
        structure = decoder.Decoder(config)
        leaves = hf_weights.read_weights(folder, config, structure.leaves, dtype)
    return LoadedModel(config=config, leaves=leaves, forward=structure.forward)


def _folder(path: str) -> pathlib.Path:
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"model {path!r} is neither a folder nor one of {', '.join(sorted(NAMED))}"
        )
    return folder
