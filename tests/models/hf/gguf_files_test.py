"""The byte model in GGUF form, and GGUF files that cannot be read."""

import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from jserve.text.tokenizer import load_tokenizer
from jserve_models.hf.folders import find_folder
from jserve_models.registry import load_model
from jserve_tools.training.conversion import convert

gguf = pytest.importorskip("gguf")

TEXT = "def f(self):\n    return None  # é"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    convert("tiny", path, "safetensors", "bfloat16")
    return path


def write(path: pathlib.Path, folder: pathlib.Path, kind: str, **changed: object):
    """Writes a folder of the byte model as llama.cpp's converter does."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, changed.get("architecture", "llama"))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads := config["num_attention_heads"])
    writer.add_head_count_kv(kv_heads := config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    special = {one["content"]: one["id"] for one in tokenizer["added_tokens"]}
    tokens = sorted(ids | special, key=(ids | special).__getitem__)
    tokens += [f"<unused{one}>" for one in range(len(tokens), config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changed.get("pre", "gpt-2"))
    writer.add_token_list(tokens)
    writer.add_token_types([3 if one in special else 1 for one in tokens])
    writer.add_bos_token_id(special["<|bos|>"])
    writer.add_eos_token_id(special["<|eos|>"])
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 4)
    quantisation = gguf.GGMLQuantizationType[kind]
    for name, bits in safetensors.numpy.load_file(folder / "model.safetensors").items():
        value = bits.astype(np.float32)
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if part in name:
                halves = value.reshape(count, 2, -1, value.shape[1])
                value = halves.swapaxes(1, 2).reshape(value.shape)
        is_plain = value.ndim == 1 or value.shape[-1] % 32  # rows of whole blocks
        one = gguf.GGMLQuantizationType.F32 if is_plain else quantisation
        data = gguf.quants.quantize(value, one)
        own = names.get_name(name, (".weight",))
        writer.add_tensor(own, data, raw_dtype=one)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0"])
def test_a_gguf_file_is_the_model_that_it_was_made_from(folder, tmp_path, kind):
    path = tmp_path / "bytes.gguf"
    write(path, folder, kind)
    model = load_model(str(path), seed=0, dtype="bfloat16")
    wanted = load_model(str(folder), seed=0, dtype="bfloat16")
    assert model.config.name == "bytes"
    for found, exact in zip(
        jax.tree.leaves(model.leaves), jax.tree.leaves(wanted.leaves), strict=True
    ):
        step = np.abs(exact).max() / 100 if kind == "Q8_0" else 0  # of 127, rounded
        np.testing.assert_allclose(
            np.float32(found), np.float32(exact), rtol=0, atol=float(step)
        )
    ours, theirs = (load_tokenizer(find_folder(str(one))) for one in (path, folder))
    assert ours.encode(TEXT) == theirs.encode(TEXT)
    assert ours.decode(ours.encode(TEXT)) == TEXT
    messages = [{"role": "user", "content": TEXT}]
    chats = [one.apply_chat_template(messages) for one in (ours, theirs)]
    assert chats[0] == chats[1]
    assert ours.eos_token_ids == {257}


def test_a_gguf_file_that_is_not_supported_is_refused(folder, tmp_path):
    path = tmp_path / "bytes.gguf"
    path.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ValueError, match=r"bytes\.gguf is not a GGUF file"):
        load_model(str(path), seed=0, dtype="float32")
    for change, message in (
        ({"architecture": "rwkv7"}, "general.architecture='rwkv7' is not supported"),
        ({"pre": "tekken"}, "'gpt2' with pre='tekken' is not supported"),
    ):
        other = tmp_path / f"{len(message)}.gguf"
        write(other, folder, "BF16", **change)
        with pytest.raises(ValueError, match=message):
            load_model(str(other), seed=0, dtype="float32")
