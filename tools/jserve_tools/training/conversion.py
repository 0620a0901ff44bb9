"""A model's folder, written with its weights in another form."""

import json
import pathlib
import shutil
from importlib import resources
from typing import Any

import numpy as np
import safetensors.numpy

from jserve_models import registry, trained_weights
from jserve_models.config import ModelConfig
from jserve_models.decoder import Decoder
from jserve_models.hf.folders import find_folder
from jserve_models.hf.weights import tensor_names
from jserve_models.matrices import dequantise
from jserve_tools.training.byte_model import save_weights

_COPIED = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "additional_chat*/*")
_FUSED = ("Phi3ForCausalLM", "MixtralForCausalLM", "GptOssForCausalLM")


def convert(model: str, output: pathlib.Path, form: str, dtype: str) -> None:
    """Writes a model's folder.

    Raises:
      ValueError: If the model cannot be read, or not be written in this form.
    """
    config = registry.model_config(model)
    folder = None if model == "tiny" else find_folder(model)
    if folder is None and model != "tiny":
        raise ValueError(f"model={model!r} has no weights of its own")
    if folder is not None and folder.resolve() == output.resolve():
        raise ValueError(f"output={output} is the model's own folder")
    # What is not weights.
    if folder is None:
        folder = pathlib.Path(str(resources.files("jserve.text") / "byte_tokenizer"))
        document = _llama(config)
    else:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        document.pop("quantization_config", None)
    if form == "safetensors" and document["architectures"][0] in _FUSED:
        raise ValueError(
            f"model={model!r}: the tensors of {document['architectures'][0]} are not "
            "written as safetensors, only as orbax"
        )
    for path in [one for pattern in _COPIED for one in folder.glob(pattern)]:
        if not path.name.endswith(".index.json"):
            target = output / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    document["dtype"] = dtype
    (output / "config.json").write_text(json.dumps(document, indent=1))
    # The weights.
    found: dict[str, np.ndarray] = {}
    leaves = Decoder(config).leaves
    hosts = registry.host_weights(model, config, None, dtype)
    for leaf, host in zip(leaves, hosts, strict=True):
        whole: Any = host if leaf.axes[0] == "layers" else [host]
        parts = [np.asarray(dequantise(part), dtype) for part in whole]
        if form == "orbax":
            found[leaf.path] = np.stack(parts) if leaf.axes[0] == "layers" else parts[0]
            continue
        for names, part in zip(tensor_names(config, leaf), parts, strict=True):
            for name, one in zip(
                names, part if len(names) > 1 else [part], strict=True
            ):
                value = one.T if leaf.is_matrix else one
                found[name] = np.ascontiguousarray(value)
    if form == "orbax":
        save_weights(output / trained_weights.CHECKPOINT, found)
    else:
        path = output / "model.safetensors"
        safetensors.numpy.save_file(found, path)  # which only its owner may read
        shutil.copymode(output / "config.json", path)


def _llama(config: ModelConfig) -> dict[str, Any]:
    """Returns the `config.json` of a named size."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_model_len,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "bos_token_id": 256,
        "eos_token_id": [257, 261],
    }
