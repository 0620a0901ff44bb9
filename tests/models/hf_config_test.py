"""`config.json` in its spellings, and what is refused."""

import json

import pytest

from jserve_models.config import LinearScaling, Llama3Scaling
from jserve_models.hf_config import read_config

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LLAMA3_SCALING = Llama3Scaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_len=64
)


@pytest.fixture
def read(tmp_path):
    def read_changed(change=None):
        raw = {**BASE, **(change or {})}
        raw = {key: value for key, value in raw.items() if value != "absent"}
        (tmp_path / "config.json").write_text(json.dumps(raw))
        return read_config(tmp_path)

    return read_changed


def test_defaults_of_what_may_be_absent(read):
    config = read({"num_key_value_heads": "absent", "rms_norm_eps": "absent"})
    assert (config.num_kv_heads, config.head_dim) == (4, 8)
    assert (config.rope_theta, config.rope_scaling) == (10000.0, None)
    assert config.rms_norm_eps == 1e-6
    assert not config.tie_embeddings


@pytest.mark.parametrize(
    ("change", "theta", "scaling"),
    [
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, 5e5, LLAMA3_SCALING),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}, 5e5, LLAMA3_SCALING),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}},
            1e4,
            LinearScaling(factor=2.0),
        ),
    ],
)
def test_both_spellings_of_rope(read, change, theta, scaling):
    config = read(change)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    ("architecture", "qkv_bias", "qk_norm"),
    [
        ("LlamaForCausalLM", False, False),
        ("Qwen2ForCausalLM", True, False),
        ("Qwen3ForCausalLM", False, True),
    ],
)
def test_architectures(read, architecture, qkv_bias, qk_norm):
    config = read({"architectures": [architecture], "head_dim": 16})
    assert (config.qkv_bias, config.qk_norm) == (qkv_bias, qk_norm)
    assert config.head_dim == 16


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 256},
        {"sliding_window": 64, "use_sliding_window": False},
    ],
)
def test_windows_that_change_nothing_are_accepted(read, change):
    assert read({**change, "architectures": ["MistralForCausalLM"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, r"GPT2LMHeadModel.*only Llama"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"sliding_window": 64}, "sliding_window=64 is below .*=256"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor=None is not a number"),
        ({"rope_parameters": {"full": {"rope_theta": 1e4}}}, "differ among layers"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({"vocab_size": "absent"}, "vocab_size=None is not a number"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers=2.5 is not a whole number"),
    ],
)
def test_what_is_unsupported_is_refused_by_name(read, change, message):
    with pytest.raises(ValueError, match=message):
        read(change)


def test_a_folder_without_a_readable_config(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        read_config(tmp_path)
    for text, message in (("{", "is not JSON"), ("[]", "is not a JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_config(tmp_path)
