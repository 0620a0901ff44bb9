"""Writes the golden files: tiny checkpoints by transformers and their logits.

Needs the `parity` dependency group (torch); the tests that read the files do not.
Each family is one folder in Hugging Face's own form, plus `golden.npz` with the
prompts and the logits at a few positions. All but one are stored as bfloat16, which
halves the files; the logits are those of the stored weights in float32.

Usage: python tests/golden/write_golden.py [folder]
"""

import copy
import json
import pathlib
import sys
from typing import Any

import numpy as np
import torch
import transformers

PROMPT_TOKENS = (1, 31, 32, 33, 64, 129, 200)  # around blocks of 32, pages of 64
MAX_POSITIONS = 16  # logits kept of each prompt
VOCAB_SIZE = 96
SHARED = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # so that attention and logits are not flat
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def families() -> dict[str, transformers.PretrainedConfig]:
    """Returns what is written: one configuration for each thing that may differ."""
    untied = {**SHARED, "tie_word_embeddings": False}
    tied = {**SHARED, "tie_word_embeddings": True}
    return {
        "llama": transformers.LlamaConfig(**untied),
        "llama3_rope": transformers.LlamaConfig(**untied, rope_parameters=LLAMA3_ROPE),
        "llama_linear_rope": transformers.LlamaConfig(
            **untied,
            rope_parameters={
                "rope_type": "linear",
                "rope_theta": 5000.0,
                "factor": 2.0,
            },
        ),
        "llama_tied": transformers.LlamaConfig(**tied),
        "qwen2": transformers.Qwen2Config(**tied),
        "qwen3": transformers.Qwen3Config(**tied, head_dim=16),
        "mistral": transformers.MistralConfig(**untied, sliding_window=None),
    }


def kept_positions(num_tokens: int) -> list[int]:
    """Returns at most 16 positions: the block and page edges, and the end."""
    edges = {0, 1, 30, 31, 32, 33, 62, 63, 64, 65, 95, 127, 128, 129, 191}
    return sorted({*(edge for edge in edges if edge < num_tokens - 1), num_tokens - 1})


def write_family(
    folder: pathlib.Path,
    config: transformers.PretrainedConfig,
    stored: torch.dtype,
    seed: int,
) -> None:
    """Writes one checkpoint with its prompts and logits."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0.0, 0.3)
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            # Not the whole model: that would round the rotary frequencies too.
            weight.copy_(weight.to(stored))
    copy.deepcopy(model).to(stored).save_pretrained(folder)
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for index, num_tokens in enumerate(PROMPT_TOKENS):
        tokens = rng.integers(0, VOCAB_SIZE, num_tokens, dtype=np.int32)
        positions = kept_positions(num_tokens)
        assert len(positions) <= MAX_POSITIONS
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens)[None].long()).logits[0]
        arrays[f"tokens_{index}"] = tokens
        arrays[f"positions_{index}"] = np.array(positions, np.int32)
        arrays[f"logits_{index}"] = logits[positions].numpy().astype(np.float32)
    np.savez_compressed(folder / "golden.npz", **arrays)


def main() -> None:
    """Writes all families below the folder given, by default beside this file."""
    default = pathlib.Path(__file__).parent
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    for seed, (name, config) in enumerate(families().items()):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        stored = torch.float32 if name == "llama" else torch.bfloat16
        write_family(folder, config, stored, seed)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(json.dumps({"family": name, "bytes": size}))


if __name__ == "__main__":
    main()
