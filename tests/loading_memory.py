"""Loads a checkpoint, or a part of it in one of two processes; says what it took.

python -m tests.loading_memory FOLDER [HOST:PORT PROCESS_ID]
"""

import json
import pathlib
import re
import sys

import jax
import numpy as np
import safetensors.numpy

from jserve.engine.cluster import join_cluster
from jserve_models.hf.config import read_config
from jserve_models.registry import load_model
from jserve_models.sharding import make_mesh

_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 65536,
    "hidden_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 4096,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
LARGEST_BYTES = 65536 * 1024 * 2
"""Of the embedding, and of the head."""


def write_checkpoint(folder: pathlib.Path) -> None:
    """Writes random bfloat16 weights, a file for each half of the tensors."""
    folder.joinpath("config.json").write_text(json.dumps(_CONFIG))
    config = read_config(folder)
    hidden, wide, size = config.hidden_size, config.intermediate_size, config.head_dim
    heads, kv_heads = config.num_heads * size, config.num_kv_heads * size
    shapes = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "lm_head.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(config.num_layers):
        parts = {
            "self_attn.q_proj": (heads, hidden),
            "self_attn.k_proj": (kv_heads, hidden),
            "self_attn.v_proj": (kv_heads, hidden),
            "self_attn.o_proj": (hidden, heads),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        for name, shape in parts.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    rng = np.random.default_rng(0)
    names = sorted(shapes)
    index: dict[str, str] = {}
    for part in (0, 1):
        file = f"model-{part}.safetensors"
        tensors = {
            name: rng.standard_normal(shapes[name], np.float32).astype("bfloat16")
            for name in names[part::2]
        }
        safetensors.numpy.save_file(tensors, folder / file)
        index |= dict.fromkeys(tensors, file)
    folder.joinpath("model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )


def _memory_bytes(field: str) -> int:
    """Returns a size that Linux states for this process."""
    status = pathlib.Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def main() -> None:
    """Loads this process's part, and prints bytes."""
    folder, *rest = sys.argv[1:]
    if rest:
        join_cluster(
            {
                "coordinator_address": rest[0],
                "num_processes": 2,
                "process_id": int(rest[1]),
            }
        )
    mesh = make_mesh(jax.devices())
    before = _memory_bytes("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # counts the peak from here
    model = load_model(folder, seed=0, dtype="bfloat16", mesh=mesh)
    jax.block_until_ready(model.leaves)
    peak = _memory_bytes("VmHWM")
    loaded = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(model.leaves)
        for shard in leaf.addressable_shards
    )
    facts = {"before": before, "peak": peak, "loaded": loaded}
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
