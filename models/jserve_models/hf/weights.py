"""Reads the tensors of a Hugging Face folder into a decoder's leaves.

Each tensor is mapped to memory, its parts are copied to the devices that hold them, and
it is unmapped before the next one, so the peak of memory is the model plus its largest
tensor. Of several processes each reads the parts of its own devices.
"""

import pathlib
import re
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jserve_models import sharding
from jserve_models.config import ModelConfig
from jserve_models.decoder import HostMatrix, Leaf
from jserve_models.hf.gguf_files import GGUF_NAME, GgufFiles
from jserve_models.hf.keys import read_json
from jserve_models.hf.matrix_formats import read_format
from jserve_models.hf.quantised_matrices import is_stored, read_matrix
from jserve_models.hf.tensor_files import FLOATS, SafetensorsFiles, TensorFiles
from jserve_models.matrices import Quantised

_ENDS = {
    "embedding": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head": "lm_head.weight",
}
_PARTS = {
    "attention": "self_attn",
    "feed_forward": "mlp",
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward_post_norm": "post_feedforward_layernorm",
}
_FUSED = {"qkv_proj": ("q", "k", "v"), "gate_up_proj": ("gate", "up")}
_IGNORED = re.compile(
    r"""rotary_emb\.inv_freq$
    # Of quantised activations and caches.
    | \.(input_scale|input_zero_point|[qkv]_scale|weight_shape)$""",
    re.VERBOSE,
)


def read_weights(
    folder: pathlib.Path, config: ModelConfig, leaves: Iterable[Leaf]
) -> Generator[HostMatrix | Iterator[HostMatrix]]:
    """Yields the weights in the order of `leaves`, those of layers one by one.

    They are views of the files: what nobody asks for is not read.

    Raises:
      ValueError: If a tensor is missing, has another shape, or has no place in the
        model; if a weight thrown in is not finite, with its name.
    """
    tensors = _Tensors(folder)
    names = _Names(config, tensors)
    for leaf in leaves:
        tensors.files.recent.clear()
        try:
            yield names.read(leaf)
        except sharding.NotFiniteError:
            raise ValueError(tensors.files.describe_not_finite()) from None
    tensors.check_all_read({_ENDS["head"]} if config.tie_embeddings else ())


def tensor_names(config: ModelConfig, leaf: Leaf) -> list[list[str]]:
    """Returns the names under which a leaf is written: for each layer, each expert."""
    found = _Recorder()
    parts: Any = _Names(config, found).read(leaf)
    return [found.take() for _ in (parts if leaf.axes[0] == "layers" else [parts])]


class _Recorder:
    """Stands for tensors of which only the names are asked for."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __contains__(self, name: str) -> bool:
        return False

    def read(self, name: str, shape: tuple[int, ...], is_matrix: bool) -> np.ndarray:
        """Returns nothing of use."""
        self.names.append(name)
        return np.zeros(0)

    def take(self) -> list[str]:
        """Returns the names since the last time."""
        names, self.names = self.names, []
        return names


class _Names:
    """Which tensors, or parts of them, are which leaves."""

    def __init__(self, config: ModelConfig, tensors: "_Tensors | _Recorder"):
        self._tensors = tensors
        self._parts = dict(_PARTS)
        if not config.post_norms:
            self._parts["feed_forward_norm"] = _PARTS["attention_post_norm"]
        self._experts = config.experts
        kv_size = config.num_kv_heads * config.head_dim
        self._sizes = {
            "q": config.num_heads * config.head_dim,
            **dict.fromkeys(("k", "v"), kv_size),
            **dict.fromkeys(("gate", "up"), config.intermediate_size),
        }

    def read(self, leaf: Leaf) -> HostMatrix | Iterator[HostMatrix]:
        """Returns the array of a leaf, or of each layer in turn."""
        if leaf.path in _ENDS:
            return self._tensors.read(_ENDS[leaf.path], leaf.shape, leaf.is_matrix)
        num_layers, *shape = leaf.shape
        return (
            self._read_layer(leaf, layer, tuple(shape)) for layer in range(num_layers)
        )

    def _read_layer(self, leaf: Leaf, layer: int, shape: tuple[int, ...]) -> HostMatrix:
        """Returns one layer's array of a leaf, such as `layers.attention.q.kernel`."""
        _, part, *inner, kind = leaf.path.split(".")
        prefix = f"model.layers.{layer}.{self._parts[part]}"
        kind = "weight" if kind == "kernel" else kind
        if part == "feed_forward" and self._experts is not None:
            prefix = f"model.layers.{layer}"
            return self._read_experts(leaf, prefix, inner[0], kind, shape)
        if not inner or inner[0].endswith("_norm"):
            name = ".".join([prefix, *inner, kind])
            return self._tensors.read(name, shape, leaf.is_matrix)
        # A projection, by itself or beside others in one tensor.
        for fused, names in _FUSED.items():
            name = f"{prefix}.{fused}.{kind}"
            if inner[0] in names and name in self._tensors:
                sizes = [self._sizes[one] for one in names]
                begin = sum(sizes[: names.index(inner[0])])
                whole = (*shape[:-1], sum(sizes))
                value = self._tensors.read(name, whole, leaf.is_matrix)
                return _outputs(value, slice(begin, begin + shape[-1]))
        name = f"{prefix}.{inner[0]}_proj.{kind}"
        return self._tensors.read(name, shape, leaf.is_matrix)

    def _read_experts(
        self, leaf: Leaf, prefix: str, part: str, kind: str, shape: tuple[int, ...]
    ) -> HostMatrix:
        """Returns one layer's router, or a projection of all its experts."""
        if part == "router":
            parts = ("block_sparse_moe.gate", "mlp.gate", "mlp.router")
            names = [f"{prefix}.{one}.{kind}" for one in parts]
            name = next((one for one in names if one in self._tensors), names[1])
            return self._tensors.read(name, shape, leaf.is_matrix)
        # All in one tensor [experts, in, out], gate and up in turns.
        end = "_bias" if kind == "bias" else ""
        whole = f"{prefix}.mlp.experts.{'down' if part == 'down' else 'gate_up'}_proj"
        if f"{whole}{end}" in self._tensors:
            if part == "down":
                return self._tensors.read(f"{whole}{end}", shape, False)
            both = (*shape[:-1], 2 * shape[-1])
            value = self._tensors.read(f"{whole}{end}", both, False)
            return _outputs(value, slice(("gate", "up").index(part), None, 2))
        # Each in its own.
        found = []
        letters = {"gate": "w1", "up": "w3", "down": "w2"}
        for expert in range(shape[0]):
            name = f"{prefix}.block_sparse_moe.experts.{expert}.{letters[part]}.{kind}"
            if name not in self._tensors:
                name = f"{prefix}.mlp.experts.{expert}.{part}_proj.{kind}"
            found.append(self._tensors.read(name, shape[1:], leaf.is_matrix))
        stacked: HostMatrix = jax.tree.map(lambda *parts: np.stack(parts), *found)
        return stacked


def _outputs(matrix: HostMatrix, some: slice) -> HostMatrix:
    """Returns some outputs of a matrix, whose scales have that axis last too."""
    found: HostMatrix = jax.tree.map(lambda part: part[..., some], matrix)
    return found


class _Tensors:
    """The tensors of a folder by their names in a model of floats."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self.files: TensorFiles
        if (folder / GGUF_NAME).exists():
            self.files = GgufFiles(folder)
        else:
            self.files = SafetensorsFiles(folder)
        raw = read_json(folder / "config.json").get("quantization_config")
        self._format = read_format(raw or {})

    def __contains__(self, name: str) -> bool:
        return name in self.files or self._is_quantised(name)

    def _is_quantised(self, name: str) -> bool:
        stem = name.removesuffix("weight")
        return self._format is not None and is_stored(self._format, stem, self.files)

    def read(self, name: str, shape: tuple[int, ...], is_matrix: bool) -> HostMatrix:
        """Returns a tensor; a matrix that is stored in fewer bits may stay so.

        Raises:
          ValueError: If it is missing, has another shape or is of unknown type.
        """
        value: HostMatrix
        if self._format is not None and self._is_quantised(name):
            stem = name.removesuffix("weight")
            value = read_matrix(self._format, stem, self.files)
        else:
            value = self.files.raw(name, FLOATS)
            # Their matrices are [out, in]; an embedding is a table in both.
            value = value.T if is_matrix else value
        found = value.values.shape if isinstance(value, Quantised) else value.shape
        if found != shape:
            raise ValueError(
                f"model folder {self._folder}: tensor {name} has shape {found}, the "
                f"configuration gives {shape}"
            )
        return value

    def check_all_read(self, ignored: Iterable[str]) -> None:
        """Raises ValueError for a tensor that would have changed the logits."""
        unread = [
            name
            for name in sorted(self.files.unread - set(ignored))
            if not _IGNORED.search(name)
            and not (name.endswith(".bias") and not self.files.raw(name).any())
        ]
        if unread:
            raise ValueError(
                f"model folder {self._folder} has {len(unread)} tensors that "
                f"the model has no place for, such as {unread[0]}"
            )
