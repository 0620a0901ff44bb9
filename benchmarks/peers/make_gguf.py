"""Writes the peers' model as GGUF in float32, for llama.cpp.

Runs in llama.cpp's environment, after make_model.py:

  benchmarks/peers/.venv-llama/bin/python benchmarks/peers/make_gguf.py
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import gguf
import numpy as np
from absl import app, flags
from safetensors.numpy import load_file

_MODEL = flags.DEFINE_string("model", "out/peers/model", "Folder of make_model.py.")
_FILE_NAME = "model.gguf"


def interleaved(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Returns the rows of a query or key projection in llama.cpp's order.

    Rotary embedding turns pairs of a head's rows: Transformers pairs row `i` with row
    `i + head_dim / 2`, llama.cpp pairs neighbours.

    Args:
      weight: `[num_heads * head_dim, hidden]`.
    """
    halves = weight.reshape(num_heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _add_config(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    add = {
        "vocab_size": writer.add_vocab_size,
        "max_position_embeddings": writer.add_context_length,
        "hidden_size": writer.add_embedding_length,
        "num_hidden_layers": writer.add_block_count,
        "intermediate_size": writer.add_feed_forward_length,
        "num_attention_heads": writer.add_head_count,
        "num_key_value_heads": writer.add_head_count_kv,
        "head_dim": writer.add_rope_dimension_count,
        "rms_norm_eps": writer.add_layer_norm_rms_eps,
    }
    for name, write in add.items():
        write(config[name])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _add_tokenizer(writer: gguf.GGUFWriter, folder: pathlib.Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = tokenizer["model"]["vocab"]
    special = {one["content"] for one in tokenizer["added_tokens"]}
    tokens = sorted(ids, key=ids.get)
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    # A byte-level BPE that splits text as GPT-2's does.
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds[token in special] for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(ids["<s>"])
    writer.add_eos_token_id(ids["</s>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())


def main(argv: Sequence[str]) -> None:
    """Writes the file, unless it exists."""
    del argv
    folder = pathlib.Path(_MODEL.value)
    path, draft = folder / _FILE_NAME, folder / f".{_FILE_NAME}"
    if path.exists():
        print(f"{path} exists")
        return
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(draft, "llama")
    _add_config(writer, config)
    _add_tokenizer(writer, folder)
    # Weights, under llama.cpp's names.
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    for name, weight in load_file(folder / "model.safetensors").items():
        projection = name.split(".")[-2]
        if projection in heads:
            weight = interleaved(weight, heads[projection])
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight",)) or name,
            np.ascontiguousarray(weight, np.float32),
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    draft.rename(path)
    print(path)


if __name__ == "__main__":
    app.run(main)
