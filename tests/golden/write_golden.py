"""Writes the golden files: tiny checkpoints by transformers and their logits.

Needs the `parity` dependency group (torch); the tests that read the files do not.
Each family is one folder in Hugging Face's own form, plus `golden.npz` with the
prompts and the logits at a few positions. Of `stored_families` the weights are there,
too, all but one as bfloat16, which halves the files; the logits are those of the stored
weights in float32. Those of `drawn_families` are drawn from their names, and of one
prompt there are the tokens that follow it, greedily.

Usage: python tests/golden/write_golden.py [folder]
"""

import copy
import json
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from tests.golden.drawing import draw_tensors

PROMPT_TOKENS = (1, 31, 32, 33, 64, 129, 200)  # around blocks of 32, pages of 64
DRAWN_PROMPT_TOKENS = (33, 65, 200)
GREEDY_TOKENS = 64  # after the first prompt of those
LEAST_MARGIN = 1e-3  # between the likeliest token and the next
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


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
WINDOW = 40  # crosses blocks of 32 and pages of 64


def stored_families() -> dict[str, transformers.PretrainedConfig]:
    """Returns those whose weights are written."""
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


def drawn_families() -> dict[str, transformers.PretrainedConfig]:
    """Returns the others: one configuration for each thing that may differ."""
    untied = {**SHARED, "tie_word_embeddings": False}
    tied = {**SHARED, "tie_word_embeddings": True}
    gemma = {**tied, "head_dim": 16, "pad_token_id": 0}
    long_rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.3],
        "long_factor": [1.0, 2.0, 3.5],
        "partial_rotary_factor": 0.75,
    }
    phi3 = {**untied, "pad_token_id": 0, "rope_parameters": long_rope}
    return {
        "llama_biases": transformers.LlamaConfig(
            **untied, attention_bias=True, mlp_bias=True
        ),
        "llama_dynamic_rope": transformers.LlamaConfig(
            **untied, rope_parameters={"rope_type": "dynamic", "factor": 2.0}
        ),
        "llama_yarn": transformers.LlamaConfig(
            **untied, rope_parameters={**YARN, "rope_theta": 10000.0}
        ),
        "mistral_window": transformers.MistralConfig(**untied, sliding_window=WINDOW),
        "ministral": transformers.MinistralConfig(
            **untied,
            head_dim=8,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        "qwen2_window": transformers.Qwen2Config(
            **tied, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
        ),
        "smollm3": transformers.SmolLM3Config(
            **tied, pad_token_id=0, no_rope_layer_interval=2
        ),
        "gemma": transformers.GemmaConfig(**gemma),
        "gemma2": transformers.Gemma2Config(
            **gemma,
            sliding_window=WINDOW,
            query_pre_attn_scalar=24,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=5.0,
        ),
        "gemma3": transformers.Gemma3TextConfig(
            **gemma,
            sliding_window=WINDOW,
            query_pre_attn_scalar=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        "phi3_short": transformers.Phi3Config(
            **phi3, original_max_position_embeddings=256, sliding_window=WINDOW
        ),
        "phi3_long": transformers.Phi3Config(
            **phi3, original_max_position_embeddings=16
        ),
        "olmo2": transformers.Olmo2Config(**untied, pad_token_id=0),
        "olmo3": transformers.Olmo3Config(
            **{**untied, "num_hidden_layers": 4},
            pad_token_id=0,
            sliding_window=WINDOW,
            rope_scaling={**YARN},
        ),
        "mixtral": transformers.MixtralConfig(
            **untied, num_local_experts=4, sliding_window=WINDOW
        ),
        "qwen3_moe": transformers.Qwen3MoeConfig(
            **untied,
            head_dim=16,
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=24,
        ),
        "gpt_oss": transformers.GptOssConfig(
            **untied,
            head_dim=16,
            sliding_window=WINDOW,
            num_local_experts=4,
            num_experts_per_tok=2,
            rope_parameters={**YARN, "rope_theta": 10000.0, "truncate": False},
        ),
        "granite": transformers.GraniteConfig(
            **tied,
            attention_multiplier=0.25,
            embedding_multiplier=3.0,
            residual_multiplier=0.5,
            logits_scaling=2.0,
        ),
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


def write_drawn(folder: pathlib.Path, config: transformers.PretrainedConfig) -> None:
    """Writes the configuration, the tensors' shapes, prompts and logits."""
    with tempfile.TemporaryDirectory() as name:
        # The tensors as transformers stores them, and another draw in their place.
        transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32
        ).save_pretrained(name)
        path = pathlib.Path(name) / "model.safetensors"
        shapes = {
            key: value.shape
            for key, value in sorted(safetensors.numpy.load_file(path).items())
        }
        mean = 0.0 if config.model_type.startswith("gemma") else 1.0
        safetensors.numpy.save_file(
            draw_tensors(shapes, norm_mean=mean), path, {"format": "pt"}
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        folder.mkdir(parents=True, exist_ok=True)
        text = (pathlib.Path(name) / "config.json").read_text()
        (folder / "config.json").write_text(text)

    def logits_of(tokens: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found = model(torch.from_numpy(tokens)[None].long(), use_cache=False)
        return found.logits[0].numpy().astype(np.float32)

    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"shapes": json.dumps(shapes), "norm_mean": mean}
    for index, num_tokens in enumerate(DRAWN_PROMPT_TOKENS):
        tokens = rng.integers(0, VOCAB_SIZE, num_tokens, dtype=np.int32)
        positions = kept_positions(num_tokens)
        arrays[f"tokens_{index}"] = tokens
        arrays[f"positions_{index}"] = np.array(positions, np.int32)
        arrays[f"logits_{index}"] = logits_of(tokens)[positions]
    tokens = arrays["tokens_0"]
    for _ in range(GREEDY_TOKENS):
        last = logits_of(tokens)[-1]
        second, first = np.sort(last)[-2:]
        assert first - second > LEAST_MARGIN, folder
        tokens = np.append(tokens, np.int32(last.argmax()))
    arrays["greedy"] = tokens[-GREEDY_TOKENS:]
    np.savez_compressed(folder / "golden.npz", **arrays)


def main() -> None:
    """Writes all families below the folder given, by default beside this file.

    A second argument names the only one that is written.
    """
    default = pathlib.Path(__file__).parent
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    only = sys.argv[2:]
    for seed, (name, config) in enumerate(stored_families().items()):
        if not only or name in only:
            (root / name).mkdir(parents=True, exist_ok=True)
            stored = torch.float32 if name == "llama" else torch.bfloat16
            write_family(root / name, config, stored, seed)
    for name, config in drawn_families().items():
        if not only or name in only:
            write_drawn(root / name, config)
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(json.dumps({"family": folder.name, "bytes": size}))


if __name__ == "__main__":
    main()
