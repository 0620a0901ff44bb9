"""Reads the `config.json` of a Hugging Face folder.

Every key is used, known to leave the logits alone, or refused by name: a model served
wrongly is worse than one not served. What is used is of its type and within its range
before anything is allocated.
"""

import pathlib
from collections.abc import Callable
from typing import Any

from jserve_models.config import Experts, ModelConfig
from jserve_models.hf.families import FAMILIES, Family
from jserve_models.hf.folders import folder_name
from jserve_models.hf.keys import Keys, read_json, short
from jserve_models.hf.matrix_formats import read_format
from jserve_models.hf.rope import read_rope

NUMBERS: dict[str, tuple[str, Callable[[float], float]]] = {
    "query_pre_attn_scalar": ("attention_scale", lambda value: value**-0.5),
    "attn_logit_softcapping": ("attention_soft_cap", float),
    "final_logit_softcapping": ("logit_soft_cap", float),
    "attention_multiplier": ("attention_scale", float),
    "embedding_multiplier": ("embedding_scale", float),
    "logits_scaling": ("logit_scale", lambda value: 1 / value),
    "residual_multiplier": ("residual_scale", float),
}
"""The field of `ModelConfig` that a key gives, and how."""


def read_config(folder: pathlib.Path, max_len: int = 0) -> ModelConfig:
    """Returns the configuration of the folder's model.

    Args:
      max_len: Most tokens that will be served, on which LongRoPE's factors depend; 0
        for all that the model takes.

    Raises:
      ValueError: If the folder holds no readable `config.json`, or its model is not
        supported; names the file, the key, its value and what is.
    """
    path = folder / "config.json"
    keys = Keys(read_json(path))
    try:
        config = _config(folder_name(folder), keys, max_len)
        keys.check_all_taken()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config


def _config(name: str, keys: Keys, max_len: int) -> ModelConfig:
    family = _family(keys)
    read_format(keys.table("quantization_config"))  # refuses what cannot be read
    num_heads = keys.integer("num_attention_heads")
    hidden_size = keys.integer("hidden_size")
    num_layers = keys.integer("num_hidden_layers")
    vocab_size = keys.integer("vocab_size")
    head_dim = keys.integer("head_dim", hidden_size // num_heads)
    unrotated_layers = _unrotated_layers(keys, family, num_layers)
    fields: dict[str, Any] = {
        **family.fields,
        **read_rope(keys, family, head_dim, max_len),
    }
    windows = _windows(keys, family, num_layers, unrotated_layers)
    # Where positions do not differ, a window that all tokens fit into is none.
    least = max(filter(None, windows), default=0)
    if least and (family.has_local_rope or least < fields["max_model_len"]):
        fields["windows"] = windows
    for key in family.numbers:
        field, convert = NUMBERS[key]
        if (value := keys.maybe_number(key)) is not None:
            fields[field] = convert(value)
    if family.scales_embeddings:
        fields["embedding_scale"] = hidden_size**0.5
    if "attention_bias" in family.flags and keys.flag("attention_bias"):
        fields |= {"qkv_bias": True, "o_bias": True}
    if "mlp_bias" in family.flags:
        fields["mlp_bias"] = keys.flag("mlp_bias")
    wide = keys.integer("intermediate_size")
    if family.has_experts:
        fields["experts"] = _experts(keys, family)
        wide = keys.integer("moe_intermediate_size", wide)
    _check_end_tokens(keys, vocab_size)
    for key in ("hidden_act", "hidden_activation"):
        if (value := keys.take(key)) not in (None, *family.hidden_acts):
            raise ValueError(
                f"{key}={short(value)} is not supported, only "
                f"{' or '.join(map(repr, family.hidden_acts))}"
            )
    return ModelConfig(
        name=name,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=keys.integer("num_key_value_heads", num_heads),
        head_dim=head_dim,
        intermediate_size=wide,
        rms_norm_eps=keys.number("rms_norm_eps", family.rms_norm_eps),
        tie_embeddings=keys.flag("tie_word_embeddings", family.is_tied),
        unrotated_layers=unrotated_layers,
        **fields,
    )


def _family(keys: Keys) -> Family:
    names = keys.take("architectures", [])
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and name in FAMILIES:
            return FAMILIES[name]
    raise ValueError(
        f"architectures={short(names)} is not supported, only {', '.join(FAMILIES)}"
    )


def _experts(keys: Keys, family: Family) -> Experts:
    """Returns the experts of a layer; all layers have them."""
    is_sure = "norm_topk_prob" not in family.flags
    count = keys.take("num_experts", keys.take("num_local_experts"))
    return Experts(
        count=Keys({"num_experts": count}).integer("num_experts"),
        per_token=keys.integer("num_experts_per_tok"),
        renormalises=is_sure or keys.flag("norm_topk_prob"),
    )


def _check_end_tokens(keys: Keys, vocab_size: int) -> None:
    """Raises ValueError for an end token that the model cannot sample."""
    value = keys.take("eos_token_id", [])
    for token in value if isinstance(value, list) else [value]:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise ValueError(
                f"eos_token_id={short(value)} is not a token from 0 to "
                f"{vocab_size - 1}, of vocab_size={vocab_size}"
            )


def _unrotated_layers(keys: Keys, family: Family, num_layers: int) -> tuple[int, ...]:
    if not (every := family.unrotated_every):
        return ()
    every = keys.integer("no_rope_layer_interval", every)
    usual = [int((layer + 1) % every != 0) for layer in range(num_layers)]
    is_rotated = keys.row("no_rope_layers", num_layers, usual)
    if not {str(one) for one in is_rotated} <= {"0", "1"}:
        raise ValueError(f"no_rope_layers={short(is_rotated)} has more than 0 and 1")
    return tuple(layer for layer, one in enumerate(is_rotated) if not one)


def _windows(
    keys: Keys, family: Family, num_layers: int, unrotated_layers: tuple[int, ...]
) -> tuple[int | None, ...]:
    """Returns the window of each layer, None for all; nothing if no layer has one."""
    if not family.has_window:
        return ()
    window = None
    if not family.has_window_switch or keys.flag("use_sliding_window"):
        window = keys.maybe_number("sliding_window", whole=True)
    keys.take("sliding_window")
    # Which layers slide where no key says so.
    layers = range(num_layers)
    if family.unrotated_every:
        slides = [layer in unrotated_layers for layer in layers]
    elif family.has_window_switch and family.has_layer_types:
        first = keys.integer("max_window_layers", 28)
        slides = [layer >= first for layer in layers]
    else:
        every = family.full_every
        if every:
            every = keys.integer("sliding_window_pattern", every)
        slides = [not every or (layer + 1) % every != 0 for layer in layers]
    if window is None:
        slides = [False] * num_layers
    if family.has_layer_types:
        names = ("full_attention", "sliding_attention")
        kinds = keys.row("layer_types", num_layers, [names[one] for one in slides])
        if unknown := [one for one in kinds if one not in names]:
            raise ValueError(
                f"layer_types={short(unknown)} is not supported, only "
                f"{' and '.join(names)}"
            )
        slides = [one == names[1] for one in kinds]
        if any(slides) and window is None:
            raise ValueError(
                "layer_types names sliding_attention, and there is no sliding_window"
            )
    return tuple(int(window) if window and one else None for one in slides)
