"""Reads the `config.json` of a Hugging Face folder.

Every key is read, known to leave the logits alone, or refused by name: a model
served wrongly is worse than one not served.
"""

import dataclasses
import json
import logging
import math
import pathlib
import re
from typing import Any

from jserve_models.config import LinearScaling, Llama3Scaling, ModelConfig
from jserve_models.hf.folders import folder_name

_LOG = logging.getLogger("jserve")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How an architecture differs from the decoder that all of them share.

    Attributes:
      qkv_bias: Whether q, k and v projections add a bias.
      qk_norm: Whether each q and k head is normalised.
      attention_scale_key: Key that gives the attention scale; "" for the usual one.
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    attention_scale_key: str = ""


FAMILIES = {
    "LlamaForCausalLM": Family(),
    "MistralForCausalLM": Family(),
    "Qwen2ForCausalLM": Family(qkv_bias=True),
    "Qwen3ForCausalLM": Family(qk_norm=True),
}

_ONLY = {
    "hidden_act": "silu",
    "is_causal": True,
    "attention_bias": False,
    "mlp_bias": False,
    "use_mrope": False,
    "is_encoder_decoder": False,
    "tie_encoder_decoder": False,
    "add_cross_attention": False,
    "partial_rotary_factor": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
}
"""Keys that may be absent or null, or else must have this value."""

_IGNORED = re.compile(
    r"""
    # Names, versions, types and ids.
    _.* | model_type | .*_version | unsloth_.* | tokenizer_class | finetuning_task
    | (torch_)?dtype | use_bfloat16 | .*_token_id | id2label | label2id | problem_type
    # Training.
    | initializer_.* | .*dropout.* | .*_pdrop | pretraining_tp | gradient_checkpointing
    | model_max_length | max_sequence_length | tf_legacy_loss
    # How a library computes and what it returns, and how tokens are sampled.
    | use_cache | use_flash_attn | chunk_size_feed_forward | is_decoder | return_dict.*
    | output_.* | torchscript | remove_invalid_values | early_stopping
    | do_sample | (max|min)_length | temperature | top_[kp] | typical_p | num_beam.*
    | .*_penalty | num_return_sequences | .*no_repeat_ngram_size
    # Where windows begin; `_max_len` keeps to what all layers see.
    | max_window_layers
    """,
    re.VERBOSE,
)
"""Keys that leave the logits alone, whatever their value."""


def read_config(folder: pathlib.Path) -> ModelConfig:
    """Returns the configuration of the folder's model.

    Raises:
      ValueError: If the folder holds no readable `config.json`, or its model is not
        supported; names the file, the key, its value and what is.
    """
    path = folder / "config.json"
    keys = _Keys(read_json(path))
    try:
        config = _config(folder_name(folder), keys)
        keys.check_all_taken()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config


def _config(name: str, keys: "_Keys") -> ModelConfig:
    family = _family(keys)
    num_heads = keys.integer("num_attention_heads")
    hidden_size = keys.integer("hidden_size")
    theta, scaling = _rope(keys)
    scale_key = family.attention_scale_key
    return ModelConfig(
        name=name,
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=keys.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=keys.integer("num_key_value_heads", num_heads),
        head_dim=keys.integer("head_dim", hidden_size // num_heads),
        intermediate_size=keys.integer("intermediate_size"),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        tie_embeddings=bool(keys.take("tie_word_embeddings")),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        attention_scale=keys.number(scale_key) if scale_key else None,
        max_model_len=_max_len(keys),
    )


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
      ValueError: If there is none.
    """
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"model folder {path.parent} has no {path.name}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} is not a JSON object")
    return raw


class _Keys:
    """The keys of a JSON object, each to be taken once."""

    def __init__(self, values: dict[str, Any]):
        self._left = dict(values)

    def take(self, key: str, default: Any = None) -> Any:
        value = self._left.pop(key, None)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.take(key, default)
        if value is None:
            raise ValueError(f"{key} is missing")
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not math.isfinite(value)
        ):
            raise ValueError(f"{key}={value!r} is not a number")
        return float(value)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if value != int(value) or value < 1:
            raise ValueError(f"{key}={value!r} is not a whole number of at least 1")
        return int(value)

    def check_all_taken(self) -> None:
        """Raises ValueError for a key not taken that may change the logits."""
        for key, value in self._left.items():
            if key in _ONLY:
                if value not in (None, _ONLY[key]):
                    raise ValueError(
                        f"{key}={value!r} is not supported, only {_ONLY[key]!r}"
                    )
            elif not (_IGNORED.fullmatch(key) or value in (None, "", [], {})):
                raise ValueError(
                    f"{key}={repr(value)[:100]} is not supported (a key that does not "
                    "change the logits may be deleted)"
                )


def _family(keys: _Keys) -> Family:
    names = keys.take("architectures", ())
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    raise ValueError(
        f"architectures={list(names)} is not supported, only {', '.join(FAMILIES)}"
    )


def _max_len(keys: _Keys) -> int:
    """Returns how many tokens every layer sees, where full attention is exact."""
    max_len = keys.integer("max_position_embeddings")
    kinds = set(keys.take("layer_types", ()))
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise ValueError(f"layer_types={sorted(kinds)} is not supported")
    window = keys.integer("sliding_window", max_len)
    has_window = keys.take("use_sliding_window", True) or "sliding_attention" in kinds
    if not has_window or window >= max_len:
        return max_len
    lengths = window, max_len
    _LOG.info("the context ends at the sliding window, %d of %d tokens", *lengths)
    return window


def _rope(keys: _Keys) -> tuple[float, LinearScaling | Llama3Scaling | None]:
    """Reads either spelling: `rope_parameters`, or `rope_theta` + `rope_scaling`."""
    raw = keys.take("rope_parameters") or keys.take("rope_scaling", {})
    if not isinstance(raw, dict):
        raise ValueError(f"rope_scaling={raw!r} is not a JSON object")
    rope = _Keys(raw)
    theta = rope.number("rope_theta", keys.number("rope_theta", 10000.0))
    kind = rope.take("type", "default")
    kind = rope.take("rope_type", kind)
    scaling: LinearScaling | Llama3Scaling | None = None
    if kind == "linear":
        scaling = LinearScaling(factor=rope.number("factor"))
    elif kind == "llama3":
        scaling = Llama3Scaling(
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_max_len=rope.integer("original_max_position_embeddings"),
        )
    elif kind != "default":
        raise ValueError(
            f"rope_type={kind!r} is not supported, only default, linear, llama3"
        )
    rope.check_all_taken()
    return theta, scaling
