"""Reads the safetensors of a Hugging Face folder into a decoder's leaves.

Each tensor is mapped to memory, its parts are copied to the devices that hold them, and
it is unmapped before the next one, so the peak of memory is the model plus its largest
tensor. Of several processes each reads the parts of its own devices.
"""

import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from jserve_models.config import ModelConfig
from jserve_models.decoder import Leaf

_ENDS = {
    "embedding": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head": "lm_head.weight",
}
_PARTS = {
    "attention": "self_attn",
    "feed_forward": "mlp",
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
}
_FLOATS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
}
_IGNORED = re.compile(r"rotary_emb\.inv_freq$")


def read_weights(
    folder: pathlib.Path, config: ModelConfig, leaves: Iterable[Leaf]
) -> Iterator[np.ndarray | Iterator[np.ndarray]]:
    """Yields the weights in the order of `leaves`, those of layers one by one.

    They are views of the files: what nobody asks for is not read.

    Raises:
      ValueError: If a tensor is missing, has another shape, or has no place in the
        model.
    """
    tensors = _Tensors(folder)
    if config.tie_embeddings:
        tensors.unread.discard("lm_head.weight")
    for leaf in leaves:
        yield _read_leaf(leaf, tensors)
    tensors.check_all_read()


def _read_leaf(leaf: Leaf, tensors: "_Tensors") -> np.ndarray | Iterator[np.ndarray]:
    """Returns the array of a leaf, or of each layer in turn."""
    if leaf.path in _ENDS:
        return tensors.read(_ENDS[leaf.path], leaf.shape, leaf.is_matrix)
    num_layers, *shape = leaf.shape
    return (
        tensors.read(_layer_name(leaf.path, layer), tuple(shape), leaf.is_matrix)
        for layer in range(num_layers)
    )


def _layer_name(path: str, layer: int) -> str:
    """Returns their name of a leaf, such as `layers.attention.q.kernel`."""
    _, part, *inner, kind = path.split(".")
    names = ["model", "layers", str(layer), _PARTS[part]]
    for name in inner:
        names.append(name if name.endswith("_norm") else f"{name}_proj")
    return ".".join([*names, "weight" if kind == "kernel" else kind])


class _Tensors:
    """The tensors of a folder by name, whichever of its files holds each."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._headers: dict[str, tuple[pathlib.Path, int, dict[str, Any]]] = {}
        for path in _files(folder):
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
                self._headers[name] = path, 8 + size, fields
        self.unread = {name for name in self._headers if not _IGNORED.search(name)}

    def read(self, name: str, shape: tuple[int, ...], is_matrix: bool) -> np.ndarray:
        if name not in self._headers:
            raise ValueError(f"model folder {self._folder} has no tensor {name}")
        self.unread.discard(name)
        path, start, fields = self._headers[name]
        if (dtype := _FLOATS.get(fields["dtype"])) is None:
            raise ValueError(
                f"{path}: tensor {name} has type {fields['dtype']}, not one of "
                f"{', '.join(_FLOATS)}"
            )
        value: np.ndarray = np.memmap(
            path,
            dtype,
            "r",
            start + fields["data_offsets"][0],
            tuple(fields["shape"]),
        )
        # Their matrices are [out, in]; an embedding is a table in both.
        value = value.T if is_matrix else value
        if value.shape != shape:
            raise ValueError(
                f"{path}: tensor {name} has shape {value.shape}, the configuration "
                f"gives {shape}"
            )
        return value

    def check_all_read(self) -> None:
        if self.unread:
            raise ValueError(
                f"model folder {self._folder} has {len(self.unread)} tensors that "
                f"the model has no place for, such as {min(self.unread)}"
            )


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
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
