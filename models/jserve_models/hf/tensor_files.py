"""The tensors of a folder by name, whichever of its files holds each."""

import abc
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from jserve_models import sharding

FLOATS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
}
_TYPES: dict[str, Any] = {
    **FLOATS,
    "F8_E4M3": jnp.float8_e4m3fn,
    "I8": np.int8,
    "U8": np.uint8,
    "I32": np.int32,
}


class TensorFiles(abc.ABC):
    """Files that hold tensors.

    Attributes:
      unread: Names of those that nothing has read yet.
      recent: Names of those that were read for one leaf.
    """

    def __init__(self, folder: pathlib.Path, paths: Mapping[str, pathlib.Path]):
        """Makes one of the file of each tensor."""
        self._folder = folder
        self._paths = paths
        self.unread = set(paths)
        self.recent: list[str] = []

    def __contains__(self, name: str) -> bool:
        return self._own(name) in self._paths

    def raw(self, name: str, kinds: Mapping[str, Any] = _TYPES) -> np.ndarray:
        """Returns a tensor as it is stored, [out, in] if it is a matrix.

        Raises:
          ValueError: If it is missing, or of another type than these.
        """
        if (own := self._own(name)) not in self._paths:
            raise ValueError(f"model folder {self._folder} has no tensor {name}")
        self.unread.discard(own)
        self.recent.append(own)
        return self._read(own, kinds)

    def describe_not_finite(self) -> str:
        """Returns which of the recent tensors is NaN or infinite, and in which file."""
        for name in dict.fromkeys(self.recent):
            if not sharding.is_finite(self._read(name, _TYPES)):
                return f"{self._paths[name]}: tensor {name} holds NaN or infinity"
        return f"model folder {self._folder}: {self.recent[-1]} gives NaN or infinity"

    def _own(self, name: str) -> str:
        """Returns the files' name of a tensor of `transformers`."""
        return name

    @abc.abstractmethod
    def _read(self, name: str, kinds: Mapping[str, Any]) -> np.ndarray:
        """Returns a tensor by the files' name."""


class SafetensorsFiles(TensorFiles):
    """Those of `model.safetensors`, or of the files of its index."""

    def __init__(self, folder: pathlib.Path):
        self._headers: dict[str, tuple[int, dict[str, Any]]] = {}
        found = {}
        for path in _paths(folder):
            try:
                # It checks the file, which is then read in parts.
                safetensors.safe_open(path, framework="numpy")
                with path.open("rb") as file:
                    size = int.from_bytes(file.read(8), "little")
                    header = json.loads(file.read(size))
            except (OSError, safetensors.SafetensorError) as error:
                raise ValueError(f"{path} cannot be read: {error}") from None
            header.pop("__metadata__", None)
            for name, fields in header.items():
                found[name] = path
                self._headers[name] = 8 + size, fields
        super().__init__(folder, found)

    def _read(self, name: str, kinds: Mapping[str, Any]) -> np.ndarray:
        path, (start, fields) = self._paths[name], self._headers[name]
        if (dtype := kinds.get(fields["dtype"])) is None:
            raise ValueError(
                f"{path}: tensor {name} has type {fields['dtype']}, not one of "
                f"{', '.join(kinds)}"
            )
        start += fields["data_offsets"][0]
        return np.memmap(path, dtype, "r", start, tuple(fields["shape"]))


def _paths(folder: pathlib.Path) -> list[pathlib.Path]:
    whole = folder / "model.safetensors"
    if whole.exists():
        return [whole]
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        raise ValueError(
            f"model folder {folder} has neither {whole.name} nor {index.name}"
        )
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of tensors: {error!r}") from None
    return [folder / name for name in names]
