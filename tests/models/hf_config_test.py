"""`config.json` in its spellings, and what is refused."""

import json
import logging

import pytest

from jserve_models.config import LinearScaling, Llama3Scaling
from jserve_models.hf_config import FAMILIES, Family, read_config

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
def test_families_differ_in_biases_and_norms(read, architecture, qkv_bias, qk_norm):
    config = read({"architectures": [architecture], "head_dim": 16})
    assert (config.qkv_bias, config.qk_norm) == (qkv_bias, qk_norm)
    assert config.head_dim == 16


@pytest.mark.parametrize(
    ("change", "max_len"),
    [
        ({"sliding_window": 512}, 256),
        ({"sliding_window": 64, "use_sliding_window": False}, 256),
        ({"sliding_window": 64}, 64),
        ({"sliding_window": 64, "layer_types": ["full_attention"] * 3}, 64),
        (
            {
                "sliding_window": 64,
                "use_sliding_window": False,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            64,
        ),
    ],
)
def test_a_window_limits_the_context_to_where_full_attention_is_exact(
    read, change, max_len, caplog
):
    caplog.set_level(logging.INFO)
    assert read(change).max_model_len == max_len
    message = "the context ends at the sliding window, 64 of 256 tokens"
    assert caplog.messages == [message] * (max_len == 64)


def test_a_family_says_which_key_is_its_attention_scale(read, monkeypatch):
    family = Family(attention_scale_key="attention_multiplier")
    monkeypatch.setitem(FAMILIES, "ScaledForCausalLM", family)
    scaled = {"architectures": ["ScaledForCausalLM"], "attention_multiplier": 0.5}
    assert read(scaled).attention_scale == 0.5
    assert read().attention_scale is None
    with pytest.raises(ValueError, match=r"attention_multiplier=0\.5 is not supported"):
        read({"attention_multiplier": 0.5})


LLAMA_3 = {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    **{"attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False},
    **{"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009]},
    **{"hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02},
    **{"intermediate_size": 14336, "max_position_embeddings": 131072},
    **{"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8},
    **{"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0},
    "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192},
    **{"tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True},
    **{"transformers_version": "4.43.0.dev0", "vocab_size": 128256},
}
MISTRAL = {
    **{"architectures": ["MistralForCausalLM"], "model_type": "mistral"},
    **{"attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2},
    **{"hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02},
    **{"intermediate_size": 14336, "max_position_embeddings": 32768},
    **{"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8},
    **{"rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096},
    **{"tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True},
    **{"transformers_version": "4.34.0.dev0", "vocab_size": 32000},
}
QWEN2 = {
    **{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    **{"attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643},
    **{"hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02},
    **{"intermediate_size": 4864, "max_position_embeddings": 32768},
    **{"max_window_layers": 24, "sliding_window": 32768, "use_sliding_window": False},
    **{"num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2},
    **{"rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "use_mrope": False},
    **{"tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True},
    **{"transformers_version": "4.40.1", "vocab_size": 151936},
}
QWEN3 = {
    **QWEN2,
    **{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128},
    **{"attention_bias": False, "hidden_size": 1024, "intermediate_size": 3072},
    **{"max_position_embeddings": 40960, "max_window_layers": 28},
    **{"num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8},
    **{"rope_scaling": None, "sliding_window": None, "use_mrope": "absent"},
}


@pytest.mark.parametrize(
    ("published", "head_dim", "max_len"),
    [
        pytest.param(LLAMA_3, 128, 131072, id="Llama-3.1-8B"),
        pytest.param({**LLAMA_3, "head_dim": 64}, 64, 131072, id="Llama-3.2-1B"),
        pytest.param(MISTRAL, 128, 4096, id="Mistral-7B-v0.1"),
        pytest.param(
            {**MISTRAL, "sliding_window": None}, 128, 32768, id="Mistral-7B-v0.3"
        ),
        pytest.param(QWEN2, 64, 32768, id="Qwen2.5-0.5B"),
        pytest.param(QWEN3, 128, 40960, id="Qwen3-0.6B"),
    ],
)
def test_published_folders_are_read(read, published, head_dim, max_len):
    config = read(published)
    assert (config.head_dim, config.max_model_len) == (head_dim, max_len)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, r"GPT2LMHeadModel.*only Llama"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"is_causal": False}, "is_causal=False is not supported, only True"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not"),
        ({"attn_logit_softcapping": 0}, "attn_logit_softcapping=0 is not"),
        ({"use_rope": False}, "use_rope=False is not supported"),
        ({"residual_multiplier": 0.22}, "residual_multiplier=0.22 is not .*only 1.0"),
        ({"layer_types": ["linear_attention"]}, r"layer_types=\['linear_attention'\]"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_parameters": {"full": {"rope_theta": 1e4}}}, "full={'rope_theta'"),
        ({"rope_scaling": {"mrope_section": [16, 24]}}, r"mrope_section=\[16, 24\]"),
        ({"rope_scaling": "yarn"}, "rope_scaling='yarn' is not a JSON object"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({"vocab_size": "absent"}, "vocab_size is missing"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers=2.5 is not a whole number"),
    ],
)
def test_what_may_change_the_logits_is_refused_by_name(read, change, message):
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        read(change)


def test_a_folder_without_a_readable_config(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        read_config(tmp_path)
    for text, message in (("{", "is not JSON"), ("[]", "is not a JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_config(tmp_path)
