"""Keeps a training's state on disk, so that it goes on where it was interrupted.

The one idea: the state is written under the number of its epoch, and older ones go only
when a newer one is whole, so that a trainer killed while it writes loses an epoch or
two and nothing else.
"""

import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jserve_tools.documents import write_whole
from jserve_tools.predictor_training import Progress

_DIGEST = "digest"


class TrainingState:
    """The states of one training, in a folder of their own."""

    def __init__(self, folder: pathlib.Path, digest: str):
        """Opens the folder; touches nothing.

        Args:
          folder: made when it is first needed.
          digest: tells the training from one with other samples or another config.
        """
        self._folder = folder.absolute()
        self._digest = digest

    def _saved(self) -> list[pathlib.Path]:
        """Returns the folders of whole states, the latest last."""
        if not self._folder.is_dir():
            return []
        found = [path for path in self._folder.iterdir() if path.name.isdecimal()]
        return sorted(found, key=lambda path: int(path.name))

    def clear(self) -> None:
        """Forgets every state, of whatever training."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def save(self, progress: Progress) -> None:
        """Writes a state, then removes the older ones.

        Raises:
          OSError: if the folder cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        older = self._saved()
        target = self._folder / str(int(progress.epoch))
        if target in older:
            return
        write_whole(self._folder / _DIGEST, self._digest.encode())
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(progress)]
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(target, _named(leaves))
        for path in older:
            shutil.rmtree(path)

    def restore(self, like: Progress) -> Progress | None:
        """Returns the latest state; None if there is none.

        Args:
          like: a state of the same training.

        Raises:
          ValueError: if it belongs to another training, or cannot be read.
        """
        saved = self._saved()
        if not saved:
            return None
        try:
            digest = (self._folder / _DIGEST).read_text()
        except OSError:
            digest = "unknown"
        if digest != self._digest:
            raise ValueError(
                f"{str(self._folder)!r} holds training {digest}, with other samples or "
                f"flags than this one, {self._digest}: leave --resume out to start anew"
            )
        leaves, structure = jax.tree.flatten(like)
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                found = checkpointer.restore(
                    saved[-1], _named([np.asarray(leaf) for leaf in leaves])
                )
        except Exception as error:  # Orbax lets any error of its stores through
            message = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise ValueError(
                f"{str(saved[-1])!r} cannot be read: {message}; leave --resume out to "
                "start anew"
            ) from error
        restored = [
            jax.numpy.asarray(found[name], leaf.dtype)
            for name, leaf in _named(leaves).items()
        ]
        progress: Progress = jax.tree.unflatten(structure, restored)
        return progress


def _named(leaves: list[Any]) -> dict[str, Any]:
    return {f"{index:03d}": leaf for index, leaf in enumerate(leaves)}
