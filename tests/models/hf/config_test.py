"""`config.json` in its spellings, and what is refused."""

import json
import math
import os

import pytest

from jserve_models.config import (
    Experts,
    Llama3Scaling,
    PairScaling,
)
from jserve_models.hf import read_config

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
            PairScaling(factors=(2.0,) * 4),
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


def named(architecture, **change):
    return {"architectures": [f"{architecture}ForCausalLM"], **change}


SWITCHED = {"sliding_window": 64, "use_sliding_window": True}
SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("change", "windows"),
    [
        (named("Mistral", sliding_window=64), (64, 64, 64)),
        (named("Mistral", sliding_window=256), ()),
        (named("Mistral", sliding_window=None), ()),
        (named("Qwen2", **SWITCHED, max_window_layers=1), (None, 64, 64)),
        (named("Qwen2", **SWITCHED), ()),
        (named("Qwen2", sliding_window=64, max_window_layers=0), ()),
        (
            named("Qwen3", **SWITCHED, layer_types=[SLIDING, FULL, FULL]),
            (64, None, None),
        ),
        (named("Ministral", sliding_window=64), (64, 64, 64)),
    ],
)
def test_which_layers_slide(read, change, windows):
    config = read(change)
    assert (config.windows, config.max_model_len) == (windows, 256)


GEMMA3 = named(
    "Gemma3",
    **{"head_dim": 8, "query_pre_attn_scalar": 16, "sliding_window": 512},
    **{"attn_logit_softcapping": None, "final_logit_softcapping": 30.0},
)


def test_layers_that_slide_may_have_positions_of_their_own(read):
    old = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 2}
    new = {
        "layer_types": [SLIDING, FULL, SLIDING],
        "rope_parameters": {
            FULL: {"rope_type": "default", "rope_theta": 1e6},
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        },
    }
    for spelling in (old, new):
        config = read(GEMMA3 | spelling)
        # Also where all tokens fit into a window.
        assert config.windows == (512, None, 512)
        assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
        assert (config.attention_scale, config.attention_soft_cap) == (0.25, None)
        assert config.logit_soft_cap == 30.0
        assert config.embedding_scale == pytest.approx(32**0.5)
        assert config.tie_embeddings


def test_yarn_stretches_the_context(read):
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    config = read({"rope_scaling": yarn})
    assert config.rope_scaling.magnitude == 1 + 0.1 * math.log(4)
    assert config.rope_scaling.factors == (1, 1.6, 4, 4)
    assert config.max_model_len == 512


def test_longrope_depends_on_the_context_that_is_served(read, tmp_path):
    scaling = {"type": "su", "short_factor": [1.0] * 3, "long_factor": [2.0] * 3}
    phi3 = named(
        "Phi3",
        **{"original_max_position_embeddings": 16, "partial_rotary_factor": 0.75},
        sliding_window=None,
        rope_scaling=scaling,
    )
    config = read(phi3)
    magnitude = math.sqrt(1 + math.log(16) / math.log(16))
    assert config.rope_scaling == PairScaling(factors=(2.0,) * 3, magnitude=magnitude)
    assert config.rotary_dim == 6
    short = read_config(tmp_path, 16)
    assert short.rope_scaling == PairScaling(factors=(1.0,) * 3, magnitude=magnitude)


def test_experts_are_as_wide_as_they_say(read):
    moe = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    config = read(named("Qwen3Moe", **moe, norm_topk_prob=False))
    assert config.experts == Experts(count=8, per_token=2, renormalises=False)
    assert config.intermediate_size == 24
    with pytest.raises(ValueError, match="a token takes 9 experts, of 8"):
        read(named("Qwen3Moe", **moe | {"num_experts_per_tok": 9}))
    with pytest.raises(ValueError, match=r"mlp_only_layers=\[0\] is not supported"):
        read(named("Qwen3Moe", **moe, mlp_only_layers=[0]))


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
        pytest.param(MISTRAL, 128, 32768, id="Mistral-7B-v0.1"),
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
        (named("Olmo2", mlp_bias=True), "mlp_bias=True is not supported"),
        (named("Mistral"), "sliding_window is missing"),
        (
            {"quantization_config": {"bits": 4}},
            "config: quant_method=.*is not",
        ),
        ({"is_causal": False}, "is_causal=False is not supported, only True"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not"),
        ({"attn_logit_softcapping": 0}, "attn_logit_softcapping=0 is not"),
        ({"use_rope": False}, "use_rope=False is not supported"),
        ({"residual_multiplier": 0.22}, "residual_multiplier=0.22 is not .*only 1.0"),
        ({"layer_types": ["linear_attention"]}, r"layer_types=\['linear_attention'\]"),
        ({"sliding_window": 64}, "sliding_window=64 is not supported"),
        (named("Qwen2", layer_types=[SLIDING] * 3), "there is no sliding_window"),
        (named("Qwen2", layer_types=[FULL]), "layer_types=.* is not a list of 3"),
        (named("Gemma2", sliding_window=64), "query_pre_attn_scalar is missing"),
        (named("Mixtral"), "rope_theta is missing"),
        ({"rope_scaling": {"rope_type": "su"}}, "rope_type='su'"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, r"rope_type=\['yarn'\]"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_parameters": {"full": {"rope_theta": 1e4}}}, "full={'rope_theta'"),
        ({"rope_scaling": {"mrope_section": [16, 24]}}, r"mrope_section=\[16, 24\]"),
        ({"rope_scaling": "yarn"}, "rope_scaling='yarn' is not a JSON object"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({"vocab_size": "absent"}, "vocab_size is missing"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers=2.5 is not a whole number"),
        ({"hidden_size": "32"}, "hidden_size='32' is not a whole number from 1 to"),
        ({"hidden_size": [32]}, r"hidden_size=\[32\] is not"),
        ({"vocab_size": 10**12}, "vocab_size=1000000000000 is not .* to 16000000"),
        ({"vocab_size": 10**400}, "vocab_size=1000"),
        ({"rope_theta": 0}, "rope_theta=0 is not a number from 1.1 to 1e[+]16"),
        ({"rope_theta": math.nan}, "rope_theta=nan is not a number"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps=-1.0 is not a number from 0 to 0.1"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no' is not true or"),
        ({"architectures": 7}, "architectures=7 is not supported"),
        ({"hidden_act": {"a": 1}}, "hidden_act={'a': 1} is not supported"),
        ({"eos_token_id": [2, 96]}, r"eos_token_id=\[2, 96\].*vocab_size=96"),
    ],
)
def test_what_may_change_the_logits_is_refused_by_name(read, change, message):
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        read(change)


def test_a_folder_without_a_readable_config(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        read_config(tmp_path)
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("[" * 100_000, "is not JSON"),
        ('{"a": ' + "1" * 5000 + "}", "is not JSON"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json is not a file"):
        read_config(tmp_path)
