"""Checkpoints in one file or several, and checkpoints that do not fit."""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from jserve_models.registry import load_model
from tests import TESTS

GOLDEN = TESTS / "golden"


def read_tensors(family):
    return dict(safetensors.numpy.load_file(GOLDEN / family / "model.safetensors"))


@pytest.fixture
def write(tmp_path):
    def write_folder(family, tensors):
        shutil.copy(GOLDEN / family / "config.json", tmp_path)
        safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
        return str(tmp_path)

    return write_folder


def load(folder):
    return load_model(str(folder), seed=0, dtype="float32").leaves


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_shards_equal_the_whole(tmp_path):
    tensors = {
        name: np.ascontiguousarray(value)
        for name, value in read_tensors("llama").items()
    }
    names = sorted(tensors)
    shutil.copy(GOLDEN / "llama" / "config.json", tmp_path)
    weight_map = {}
    for part in range(3):
        file = f"model-{part}.safetensors"
        held = {name: tensors[name] for name in names[part::3]}
        safetensors.numpy.save_file(held, tmp_path / file)
        weight_map.update(dict.fromkeys(held, file))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_same(load(tmp_path), load(GOLDEN / "llama"))
    for spoil in (lambda path: path.write_bytes(b"{}"), pathlib.Path.unlink):
        spoil(tmp_path / "model-1.safetensors")
        with pytest.raises(ValueError, match=r"model-1\.safetensors cannot be read"):
            load(tmp_path)
    index.write_text("{}")
    with pytest.raises(ValueError, match="is not an index of tensors"):
        load(tmp_path)
    index.unlink()
    with pytest.raises(ValueError, match=r"has neither model\.safetensors nor"):
        load(tmp_path)


def test_a_tied_head_and_old_rotary_buffers_are_ignored(write):
    tensors = read_tensors("llama_tied")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    assert_same(load(write("llama_tied", tensors)), load(GOLDEN / "llama_tied"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, r"no tensor .*\.1\.mlp\.up_proj"),
        ("model.layers.0.self_attn.q_proj.bias", np.ones(32), "1 tensors .*proj.bias"),
        ("model.norm.weight", np.ones(31, np.float32), r"shape \(31,\).*\(32,\)"),
        ("model.norm.weight", np.ones(32, np.int8), "norm.weight has type I8"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(write, name, value, message):
    tensors = read_tensors("llama") | {name: value}
    tensors = {key: one for key, one in tensors.items() if one is not None}
    with pytest.raises(ValueError, match=message):
        load(write("llama", tensors))


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.2.mlp.up_proj.weight"]
)
def test_a_weight_that_is_not_finite_is_named(write, name, value):
    tensors = read_tensors("llama")
    tensors[name] = tensors[name].copy()
    tensors[name].flat[-1] = value
    message = rf"model\.safetensors: tensor {re.escape(name)} holds NaN or infinity"
    with pytest.raises(ValueError, match=message):
        load(write("llama", tensors))
