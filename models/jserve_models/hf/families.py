"""The architectures of Hugging Face folders, as what each has that Llama has not."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How an architecture differs from Llama; defaults are those of transformers.

    Attributes:
      fields: Fields of `ModelConfig` that all its models have.
      numbers: Keys of `hf.config.NUMBERS` that must be there, as numbers or null.
      flags: Keys that it has of `attention_bias`, `mlp_bias` and `norm_topk_prob`.
      hidden_acts: What `hidden_act` may be, under which names.
      rms_norm_eps: What a folder that leaves it out means.
      rope_theta: What a folder that leaves it out means; None if it must not.
      is_tied: What a folder that leaves `tie_word_embeddings` out means.
      scales_embeddings: Whether embeddings are multiplied by the root of their width.
      has_window: Whether layers may slide.
      has_window_switch: Whether they do only if `use_sliding_window` says so.
      has_layer_types: Whether `layer_types` says which layers slide.
      full_every: Which layers see all where nothing says so: every n-th; 0 for none.
      has_local_rope: Whether nothing stretches the rotary frequencies of layers that
        slide, and they may have a base of their own.
      unrotated_every: Which layers have no rotary embedding where nothing says so:
        every n-th; 0 for none.
      turns_parts: Whether only a part of each head may turn.
      has_experts: Whether feed-forward parts have experts.
    """

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    hidden_acts: tuple[str, ...] = ("silu",)
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = 10000.0
    is_tied: bool = False
    scales_embeddings: bool = False
    has_window: bool = False
    has_window_switch: bool = False
    has_layer_types: bool = False
    full_every: int = 0
    has_local_rope: bool = False
    unrotated_every: int = 0
    turns_parts: bool = False
    has_experts: bool = False


_BIASES = ("attention_bias", "mlp_bias")
_MISTRAL = Family(has_window=True)
_QWEN2 = Family(
    fields={"qkv_bias": True},
    has_window=True,
    has_window_switch=True,
    has_layer_types=True,
)
_GEMMA = Family(
    fields={"norm_offset": True, "activation": "gelu_tanh"},
    flags=("attention_bias",),
    # What Gemma calls "gelu" has always been computed by way of tanh.
    hidden_acts=("gelu_pytorch_tanh", "gelu"),
    is_tied=True,
    scales_embeddings=True,
)
_GEMMA2 = dataclasses.replace(
    _GEMMA,
    fields={**_GEMMA.fields, "post_norms": True},
    numbers=(
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    ),
    has_window=True,
    has_layer_types=True,
    full_every=2,
)
_OLMO2 = Family(
    fields={"pre_norms": False, "post_norms": True, "wide_qk_norm": True},
    flags=("attention_bias",),
    rms_norm_eps=1e-5,
)

FAMILIES = {
    "LlamaForCausalLM": Family(flags=_BIASES),
    "MistralForCausalLM": _MISTRAL,
    "MinistralForCausalLM": dataclasses.replace(_MISTRAL, has_layer_types=True),
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": dataclasses.replace(
        _QWEN2, fields={"qk_norm": True}, flags=("attention_bias",)
    ),
    "SmolLM3ForCausalLM": Family(
        flags=_BIASES,
        rope_theta=None,
        is_tied=True,
        has_window=True,
        has_window_switch=True,
        has_layer_types=True,
        unrotated_every=4,
    ),
    "GemmaForCausalLM": _GEMMA,
    "Gemma2ForCausalLM": _GEMMA2,
    "Gemma3ForCausalLM": dataclasses.replace(
        _GEMMA2,
        fields={**_GEMMA2.fields, "qk_norm": True},
        rope_theta=None,
        full_every=6,
        has_local_rope=True,
    ),
    "Phi3ForCausalLM": Family(rms_norm_eps=1e-5, has_window=True, turns_parts=True),
    "Olmo2ForCausalLM": _OLMO2,
    "Olmo3ForCausalLM": dataclasses.replace(
        _OLMO2,
        rope_theta=None,
        has_window=True,
        has_layer_types=True,
        full_every=4,
        has_local_rope=True,
    ),
    "MixtralForCausalLM": Family(
        rms_norm_eps=1e-5,
        rope_theta=None,
        has_window=True,
        has_experts=True,
    ),
    "Qwen3MoeForCausalLM": Family(
        fields={"qk_norm": True},
        flags=("attention_bias", "norm_topk_prob"),
        has_window=True,
        has_window_switch=True,
        has_experts=True,
    ),
    "GptOssForCausalLM": Family(
        fields={"sinks": True, "mlp_bias": True, "activation": "clamped"},
        flags=("attention_bias",),
        rms_norm_eps=1e-5,
        rope_theta=None,
        has_window=True,
        has_layer_types=True,
        full_every=2,
        has_experts=True,
    ),
    "GraniteForCausalLM": Family(
        flags=_BIASES,
        numbers=(
            "attention_multiplier",
            "embedding_multiplier",
            "logits_scaling",
            "residual_multiplier",
        ),
    ),
}
