"""The keys of a JSON file as users have them: of any type, and any value."""

import json
import pathlib
import re
from typing import Any

_MOST_BYTES = 2**28  # of a JSON file; the largest published tokenizer has 2**25

_BY_RANGE: dict[tuple[float, float], str] = {
    (1, 1000): "num_hidden_layers num_experts_per_tok "
    "sliding_window_pattern no_rope_layer_interval",
    (1, 10_000): "num_attention_heads num_key_value_heads num_experts "
    "num_local_experts factor",
    (2, 10_000): "head_dim",
    (1, 16_000_000): "vocab_size hidden_size intermediate_size moe_intermediate_size",
    (1, 1_000_000_000): "max_position_embeddings sliding_window",
    (2, 1_000_000_000): "original_max_position_embeddings",
    (0, 1000): "max_window_layers",
    (0, 0.1): "rms_norm_eps",
    (1.1, 1e16): "rope_theta rope_local_base_freq",
    (0.01, 1): "partial_rotary_factor",
    (0, 100): "mscale mscale_all_dim",
    (1e-6, 1e6): "low_freq_factor high_freq_factor beta_fast beta_slow "
    "attention_factor long_factor short_factor query_pre_attn_scalar "
    "attn_logit_softcapping final_logit_softcapping attention_multiplier "
    "embedding_multiplier logits_scaling residual_multiplier",
}
_RANGES = {key: ends for ends, keys in _BY_RANGE.items() for key in keys.split()}
"""The least and the most that each key may be."""

_ONLY = {
    "is_causal": True,
    "attention_bias": False,
    "mlp_bias": False,
    "lm_head_bias": False,
    "use_mrope": False,
    "use_bidirectional_attention": False,
    "is_encoder_decoder": False,
    "tie_encoder_decoder": False,
    "add_cross_attention": False,
    "partial_rotary_factor": 1.0,
    "interpolate_factor": 1,
    "full_attn_mod": 1,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
}
"""Keys that may be absent or null, or else must have this value, where no family uses
them."""

_IGNORED = re.compile(
    r"""
    # Names, versions, types and ids.
    _.* | model_type | .*_version | unsloth_.* | tokenizer_class | finetuning_task
    | (torch_)?dtype | use_bfloat16 | .*_token_id | id2label | label2id | problem_type
    | auto_map
    # Training.
    | initializer_.* | .*dropout.* | .*_pdrop | pretraining_tp | gradient_checkpointing
    | router_aux_loss_coef | router_jitter_noise | initial_context_length
    | experts_per_token
    | model_max_length | max_sequence_length | tf_legacy_loss
    # How a library computes and what it returns, and how tokens are sampled.
    | use_cache | use_flash_attn | chunk_size_feed_forward | is_decoder | return_dict.*
    | output_.* | torchscript | remove_invalid_values | early_stopping
    | cache_implementation
    | do_sample | (max|min)_length | temperature | top_[kp] | typical_p | num_beam.*
    | .*_penalty | num_return_sequences | .*no_repeat_ngram_size
    # Where windows begin, if there are any.
    | max_window_layers
    """,
    re.VERBOSE,
)
"""Keys that leave the logits alone, whatever their value."""


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
      ValueError: If there is none.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MOST_BYTES)
        raw: Any = json.loads(text)
    except FileNotFoundError:
        raise ValueError(f"model folder {path.parent} has no {path.name}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} is not a JSON object")
    return raw


class Keys:
    """The keys of a JSON object, each to be taken once."""

    def __init__(self, values: dict[str, Any]):
        self._left = dict(values)

    def take(self, key: str, default: Any = None) -> Any:
        """Returns the value of a key, unless it is null, or the default."""
        value = self._left.pop(key, None)
        return default if value is None else value

    def number(
        self, key: str, default: float | None = None, *, whole: bool = False
    ) -> float:
        """Returns a number of the key's range; it is missing if there is none."""
        value = self.take(key, default)
        if value is None:
            raise ValueError(f"{key} is missing")
        return checked(key, value, whole=whole)

    def maybe_number(self, key: str, *, whole: bool = False) -> float | None:
        """Returns a number, or None for null; the key must be there."""
        if key in self._left and self._left[key] is None:
            return self.take(key)  # type: ignore[no-any-return]
        return self.number(key, whole=whole)

    def integer(self, key: str, default: int | None = None) -> int:
        """Returns a whole number of the key's range."""
        return int(self.number(key, default, whole=True))

    def flag(self, key: str, default: bool = False) -> bool:
        """Returns true or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{key}={short(value)} is not true or false")
        return value

    def table(self, key: str) -> dict[str, Any]:
        """Returns a JSON object, empty without the key."""
        value = self.take(key, {})
        if not isinstance(value, dict):
            raise ValueError(f"{key}={short(value)} is not a JSON object")
        return value

    def row(self, key: str, length: int, default: Any = None) -> list[Any]:
        """Returns a list of a known length."""
        value = self.take(key, default)
        if not isinstance(value, list) or len(value) != length:
            raise ValueError(f"{key}={short(value)} is not a list of {length}")
        return value

    def check_all_taken(self) -> None:
        """Raises ValueError for a key not taken that may change the logits."""
        for key, value in self._left.items():
            if key in _ONLY:
                if value not in (None, _ONLY[key]):
                    raise ValueError(
                        f"{key}={short(value)} is not supported, only {_ONLY[key]!r}"
                    )
            elif not (_IGNORED.fullmatch(key) or value in (None, "", [], {})):
                raise ValueError(
                    f"{key}={short(value)} is not supported (a key that does not "
                    "change the logits may be deleted)"
                )


def short(value: Any) -> str:
    """Returns a value as a message shows it."""
    return repr(value)[:100]


def checked(key: str, value: Any, *, whole: bool = False) -> float:
    """Returns a number of a key, if it is one, and in the key's range.

    Raises:
      ValueError: If it is not.
    """
    low, high = _RANGES[key]
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not low <= value <= high  # so NaN and infinity are not either
        or (whole and value != int(value))
    ):
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{key}={short(value)} is not {kind} from {low} to {high}")
    return float(value)
