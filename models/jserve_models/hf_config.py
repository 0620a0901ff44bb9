"""Reads the `config.json` of a Hugging Face folder.

Four architectures share one decoder. Whatever would make their logits differ from
ours is refused by name: a model served wrongly is worse than one not served.
"""

import json
import math
import pathlib
from typing import Any

from jserve_models.config import LinearScaling, Llama3Scaling, ModelConfig

_QKV_BIAS = {"Qwen2ForCausalLM"}
_QK_NORM = {"Qwen3ForCausalLM"}
ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)

_REFUSED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
"""Keys that may be absent or null, or else must have this value."""


def read_config(folder: pathlib.Path) -> ModelConfig:
    """Returns the shape of the folder's model.

    Raises:
      ValueError: If the folder holds no readable `config.json`, or its model is not
        supported; names the key, its value and what is.
    """
    raw = read_json(folder / "config.json")
    architecture = _architecture(raw)
    for key, wanted in _REFUSED.items():
        if raw.get(key) not in (None, wanted):
            raise ValueError(f"{key}={raw[key]!r} is not supported, only {wanted!r}")
    max_len = _integer(raw, "max_position_embeddings")
    _check_window(raw, max_len)
    num_heads = _integer(raw, "num_attention_heads")
    hidden_size = _integer(raw, "hidden_size")
    theta, scaling = _rope(raw)
    return ModelConfig(
        name=folder.resolve().name,
        vocab_size=_integer(raw, "vocab_size"),
        hidden_size=hidden_size,
        num_layers=_integer(raw, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_integer(raw, "num_key_value_heads", num_heads),
        head_dim=_integer(raw, "head_dim", hidden_size // num_heads),
        intermediate_size=_integer(raw, "intermediate_size"),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=architecture in _QKV_BIAS,
        qk_norm=architecture in _QK_NORM,
        max_model_len=max_len,
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


def _architecture(raw: dict[str, Any]) -> str:
    names = raw.get("architectures") or ()
    for name in names:
        if name in ARCHITECTURES:
            return str(name)
    raise ValueError(
        f"architectures={list(names)} is not supported, only {', '.join(ARCHITECTURES)}"
    )


def _number(raw: dict[str, Any], key: str, default: float | None = None) -> float:
    value = raw.get(key)
    if value is None:
        value = default
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not math.isfinite(value)
    ):
        raise ValueError(f"{key}={value!r} is not a number")
    return float(value)


def _integer(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    value = _number(raw, key, default)
    if value != int(value) or value < 1:
        raise ValueError(f"{key}={value!r} is not a whole number of at least 1")
    return int(value)


def _check_window(raw: dict[str, Any], max_len: int) -> None:
    window = raw.get("sliding_window")
    if window is None or raw.get("use_sliding_window") is False:
        return
    if _number(raw, "sliding_window") < max_len:
        raise ValueError(
            f"sliding_window={window} is below max_position_embeddings={max_len}: "
            "only full attention is supported"
        )


def _rope(raw: dict[str, Any]) -> tuple[float, LinearScaling | Llama3Scaling | None]:
    """Reads either spelling: `rope_parameters`, or `rope_theta` + `rope_scaling`."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = _number(rope, "rope_theta", _number(raw, "rope_theta", 10000.0))
    if rope.get("partial_rotary_factor") not in (None, 1.0):
        raise ValueError(
            f"partial_rotary_factor={rope['partial_rotary_factor']!r} is not "
            "supported, only 1.0"
        )
    if any(isinstance(value, dict) for value in rope.values()):
        raise ValueError("rope parameters that differ among layers are not supported")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearScaling(factor=_number(rope, "factor"))
    if kind == "llama3":
        return theta, Llama3Scaling(
            factor=_number(rope, "factor"),
            low_freq_factor=_number(rope, "low_freq_factor"),
            high_freq_factor=_number(rope, "high_freq_factor"),
            original_max_len=_integer(rope, "original_max_position_embeddings"),
        )
    raise ValueError(
        f"rope_type={kind!r} is not supported, only default, linear, llama3"
    )
