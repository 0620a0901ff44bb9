"""GGUF files of llama.cpp, read as the folders from which they were made.

A file's metadata become a `config.json` and the files of a tokenizer, in a folder that
links to it and lasts as long as the process. Its tensors are dequantised by the package
`gguf`, which comes with jserve's extra of that name.
"""

import atexit
import functools
import json
import pathlib
import re
import shutil
import struct
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from jserve_models.hf.keys import short
from jserve_models.hf.tensor_files import TensorFiles

GGUF_NAME = "model.gguf"
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",  # and Mistral
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_CONFIG = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "num_experts": "expert_count",
}
_SCALING = {
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
}
_TOKENIZER_CLASSES = {
    "gpt-2": "GPT2Tokenizer",
    "llama-bpe": "Llama3Tokenizer",
    "qwen2": "Qwen2Tokenizer",
}
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens, as in SentencePiece


def _open(path: pathlib.Path) -> Any:
    """Returns the package's reader of a file.

    Raises:
      ValueError: If the package is missing, or it cannot read the file.
    """
    try:
        import gguf
    except ImportError:
        raise ValueError(
            f"{path} needs the package gguf: pip install 'jserve[gguf]'"
        ) from None
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # of whatever the bytes lead to
        why = f"is not a GGUF file that can be read: {error}"
        raise ValueError(f"{path} {why}") from None


@functools.cache
def gguf_folder(path: pathlib.Path) -> pathlib.Path:
    """Returns a folder that stands for a file, under the file's name.

    Raises:
      ValueError: If the file cannot be read, or what it holds is not supported.
    """
    reader = _open(path)
    values = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {one.name: one.data for one in reader.tensors}
    try:
        files = {
            "config.json": json.dumps(_config(values, tensors)).encode(),
            **_tokenizer(values),
        }
    except (KeyError, TypeError, IndexError, struct.error) as error:
        raise ValueError(f"{path}: its metadata are broken: {error!r}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    parent = tempfile.mkdtemp(prefix="jserve-gguf-")
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    folder = pathlib.Path(parent) / path.stem
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / GGUF_NAME).symlink_to(path.absolute())
    return folder


def _config(values: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `config.json` would say."""
    name = values["general.architecture"]
    if name not in _ARCHITECTURES:
        raise ValueError(
            f"general.architecture={short(name)} is not supported, only "
            f"{', '.join(_ARCHITECTURES)}"
        )

    def taken(keys: Mapping[str, str]) -> dict[str, Any]:
        found = {key: values.get(f"{name}.{one}") for key, one in keys.items()}
        return {key: value for key, value in found.items() if value is not None}

    config = taken(_CONFIG)
    rope = {"rope_type": values.get(f"{name}.rope.scaling.type"), **taken(_SCALING)}
    if rope["rope_type"] in (None, "none"):
        rope = {}
    if "rope_freqs.weight" in tensors:  # a divisor for each pair, as of Llama 3.1
        factors = [float(one) for one in tensors["rope_freqs.weight"]]
        both = dict.fromkeys(("short_factor", "long_factor"), factors)
        rope = {"rope_type": "longrope", "attention_factor": 1.0, **both}
    ends = [values.get(f"tokenizer.ggml.{one}_token_id") for one in ("eos", "eot")]
    return {
        **config,
        "architectures": [_ARCHITECTURES[name]],
        "vocab_size": len(tensors["token_embd.weight"]),
        "tie_word_embeddings": "output.weight" not in tensors,
        "eos_token_id": [one for one in ends if one is not None],
        "rope_scaling": rope,
    }


def _tokenizer(values: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns the files of the tokenizer and of its chat template, by name."""

    def get(name: str, default: Any = None) -> Any:
        return values.get(f"tokenizer.ggml.{name}", default)

    tokens, kind, split = get("tokens", []), get("model"), get("pre")
    kinds = get("token_type", [1] * len(tokens))
    ids = {"bos": get("bos_token_id"), "eos": get("eos_token_id")}
    ids["unk"] = get("unknown_token_id")
    named = {
        f"{name}_token": None if index is None else tokens[index]
        for name, index in ids.items()
    }
    is_pieces = kind == "llama"
    settings = {
        **named,
        "add_bos_token": get("add_bos_token", is_pieces or split == "llama-bpe"),
        "add_eos_token": get("add_eos_token", False),
        "chat_template": values.get("tokenizer.chat_template"),
    }
    files = {}
    if is_pieces:
        pieces = zip(tokens, get("scores"), kinds, strict=True)
        model = [_bytes({1: [_bytes({1: [t], 2: [s], 3: [k]})]}) for t, s, k in pieces]
        numbers = {40: "unk", 41: "bos", 42: "eos"}
        found = {one: [ids[name] or 0] for one, name in numbers.items()}
        trainer = _bytes({3: [2], 35: [int(6 in kinds)], **found})
        has_prefix = int(get("add_space_prefix", True))
        normalizer = _bytes({1: ["identity"], 3: [has_prefix], 4: [0]})
        model.append(_bytes({2: [trainer], 3: [normalizer]}))
        files["tokenizer.model"] = b"".join(model)
    elif kind == "gpt2" and split in _TOKENIZER_CLASSES:
        vocabulary = {token: index for index, token in enumerate(tokens)}
        files["vocab.json"] = json.dumps(vocabulary).encode()
        files["merges.txt"] = "\n".join(["#version: 0.2", *get("merges", [])]).encode()
        settings["tokenizer_class"] = _TOKENIZER_CLASSES[split]
        settings["added_tokens_decoder"] = {
            index: {"content": token, "special": one == _CONTROL, "normalized": False}
            for index, (token, one) in enumerate(zip(tokens, kinds, strict=True))
            if one in (_CONTROL, _USER_DEFINED)
        }
    else:
        raise ValueError(
            f"tokenizer.ggml.model={short(kind)} with pre={short(split)} is not "
            f"supported, only llama, and gpt2 with {', '.join(_TOKENIZER_CLASSES)}"
        )
    return {**files, "tokenizer_config.json": json.dumps(settings).encode()}


def _bytes(fields: Mapping[int, list[Any]]) -> bytes:
    """Returns a protocol buffer of fields by number."""

    def varint(value: int) -> bytes:
        rest, low = divmod(value, 128)
        return bytes([low + 128]) + varint(rest) if rest else bytes([low])

    found = b""
    for number, values in fields.items():
        for value in values:
            if isinstance(value, float):
                found += varint(8 * number + 5) + struct.pack("<f", value)
            elif isinstance(value, int):
                found += varint(8 * number) + varint(value)
            else:
                data = value.encode() if isinstance(value, str) else value
                found += varint(8 * number + 2) + varint(len(data)) + data
    return found


class GgufFiles(TensorFiles):
    """The tensors of a folder of `gguf_folder`."""

    def __init__(self, folder: pathlib.Path):
        import gguf

        reader = _open(path := folder / GGUF_NAME)
        self._values = {one.name: one for one in reader.tensors}
        fields = reader.fields
        self._architecture = name = fields["general.architecture"].contents()
        num_heads = f"{name}.attention.head_count"
        self._heads = {
            part: int(fields.get(key, fields[num_heads]).contents())
            for part, key in (("attn_q", num_heads), ("attn_k", f"{num_heads}_kv"))
        }
        arch = {text: one for one, text in gguf.MODEL_ARCH_NAMES.items()}[name]
        num_layers = int(fields[f"{name}.block_count"].contents())
        self._names = gguf.get_tensor_name_map(arch, num_layers)
        super().__init__(folder, dict.fromkeys(self._values, path.readlink()))
        self.unread.discard("rope_freqs.weight")  # in the configuration

    def _own(self, name: str) -> str:
        if re.search("(qkv|gate_up)_proj", name):  # the package takes them for parts
            return name
        return self._names.get_name(name, (".weight", ".bias")) or name

    def _read(self, name: str, kinds: Mapping[str, Any]) -> np.ndarray:
        import gguf

        tensor = self._values[name]
        try:
            value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise ValueError(
                f"{self._paths[name]}: tensor {name} has type "
                f"{tensor.tensor_type.name}, which the package gguf does not dequantise"
            ) from None
        part = name.split(".")[-2]
        if self._architecture == "llama" and part in self._heads:
            # Rotary embedding turns neighbours there, and halves of a head here.
            pairs = value.reshape(self._heads[part], -1, 2, *value.shape[1:])
            value = pairs.swapaxes(1, 2).reshape(value.shape)
        found: np.ndarray = value
        return found
