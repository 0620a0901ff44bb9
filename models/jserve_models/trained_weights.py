"""Reads weights from an Orbax checkpoint: those of the package, or of a folder.

The arrays are read with TensorStore, in whose form Orbax writes them: importing Orbax
takes ten times as long as reading a small model.
"""

import pathlib
from collections.abc import Generator, Iterator, Sequence

import jax
import numpy as np

from jserve_models.decoder import Leaf

CHECKPOINT = "checkpoint"
"""Name of the checkpoint in a folder."""


def packaged_checkpoint(name: str) -> pathlib.Path | None:
    """Returns the checkpoint that comes with a named size; None if none does."""
    path = pathlib.Path(__file__).parent / "trained" / name / CHECKPOINT
    return path if path.is_dir() else None


def read_trained(
    folder: pathlib.Path, leaves: Sequence[Leaf], dtype: jax.typing.DTypeLike
) -> Generator[np.ndarray | Iterator[np.ndarray]]:
    """Yields the weights in the order of `leaves`, those of layers one by one.

    Args:
      folder: Checkpoint that holds an array for each path of a leaf.

    Raises:
      ValueError: If an array is missing or has another shape.
    """
    import tensorstore  # here, for the models that need none

    opened = [
        tensorstore.open(
            {
                "driver": "zarr",
                "kvstore": {
                    "driver": "ocdbt",
                    "base": f"file://{folder}/",
                    "path": f"{leaf.path}/",
                },
            },
            open=True,
        )
        for leaf in leaves
    ]
    for leaf, one in zip(leaves, opened, strict=True):
        value = one.result()
        if value.shape != leaf.shape:
            raise ValueError(
                f"{leaf.path} has shape {value.shape} in {folder}, the configuration "
                f"gives {leaf.shape}"
            )
        if leaf.axes[0] == "layers":
            yield (
                store[layer].read().result().astype(dtype)
                for store in [value]  # bound now
                for layer in range(store.shape[0])
            )
        else:
            yield value.read().result().astype(dtype)
