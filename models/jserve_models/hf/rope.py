"""Positions in a `config.json`: how queries and keys turn, and how far."""

import math
from typing import Any

from jserve_models.config import Llama3Scaling, PairScaling
from jserve_models.hf.families import Family
from jserve_models.hf.keys import Keys, checked, short

_ORIGINAL = "original_max_position_embeddings"


def read_rope(
    keys: Keys, family: Family, head_dim: int, served_len: int
) -> dict[str, Any]:
    """Returns the fields of positions, and the context that they reach.

    It reads either spelling: `rope_parameters`, or `rope_theta` and `rope_scaling`.

    Args:
      served_len: Most tokens that will be served; 0 for all.
    """
    raw = keys.table("rope_parameters") or keys.table("rope_scaling")
    rope, local = Keys(raw), Keys({})
    if family.has_local_rope and "full_attention" in raw:
        both, kinds = rope, ("full_attention", "sliding_attention")
        rope, local = (Keys(both.table(kind)) for kind in kinds)
        both.check_all_taken()
    theta = rope.take("rope_theta", keys.take("rope_theta", family.rope_theta))
    theta = Keys({"rope_theta": theta}).number("rope_theta")
    max_len = keys.integer("max_position_embeddings")
    fields: dict[str, Any] = {"rope_theta": theta, "max_model_len": max_len}
    if family.has_local_rope:
        base = keys.take("rope_local_base_freq", theta)
        fields["local_rope_theta"] = local.number("rope_theta", base)
        if local.take("rope_type", "default") != "default":
            raise ValueError("rope_parameters stretches sliding_attention")
        local.check_all_taken()
    # The part of a head that turns.
    size, original = head_dim, rope.take(_ORIGINAL)
    if family.turns_parts:
        share = keys.take("partial_rotary_factor", 1.0)
        size = int(head_dim * rope.number("partial_rotary_factor", share))
        fields["rotary_dim"] = size if size < head_dim else None
        original = keys.take(_ORIGINAL, original)
    original = Keys({_ORIGINAL: original}).integer(_ORIGINAL, max_len)
    # How frequencies are stretched.
    kind = rope.take("type", "default")
    kind = rope.take("rope_type", kind)
    if family.turns_parts and kind in ("su", "yarn"):
        kind = "longrope"
    if kind == "linear":
        factors = (rope.number("factor"),) * (size // 2)
        fields["rope_scaling"] = PairScaling(factors=factors)
    elif kind == "dynamic":
        # It stretches contexts beyond the longest one, and those are not served.
        rope.number("factor")
    elif kind == "llama3":
        fields["rope_scaling"] = Llama3Scaling(
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_max_len=original,
        )
    elif kind in ("yarn", "longrope"):
        factor = rope.number("factor", max(max_len / original, 1.0))
        if kind == "yarn":
            factors, magnitude = _yarn(rope, factor, theta, original, size)
            fields["max_model_len"] = max(max_len, int(factor * original))
        else:
            magnitude = math.sqrt(1 + math.log(factor) / math.log(original))
            is_long = (served_len or max_len) > original
            short_factor, long_factor = (
                tuple(checked(name, one) for one in rope.row(name, size // 2))
                for name in ("short_factor", "long_factor")
            )
            factors = long_factor if is_long else short_factor
        magnitude = rope.number("attention_factor", magnitude)
        fields["rope_scaling"] = PairScaling(factors=factors, magnitude=magnitude)
    elif kind != "default":
        raise ValueError(
            f"rope_type={short(kind)} is not supported, only default, linear, "
            "dynamic, llama3, yarn, longrope"
        )
    rope.check_all_taken()
    return fields


def _yarn(
    rope: Keys, factor: float, theta: float, original: int, size: int
) -> tuple[tuple[float, ...], float]:
    """Returns a divisor for each pair, and the factor of queries and keys.

    YaRN (Peng, Quesnelle, Fan and Shippole, 2023), equations 20 to 23: frequencies that
    turn often in the trained context are kept, slow ones divided, with a ramp between.
    """

    def pair(turns: float) -> float:
        """Returns which pair turns so often in the trained context."""
        wave = original / (2 * math.pi * turns)
        return size * math.log(wave) / (2 * math.log(theta))

    low = pair(rope.number("beta_fast", 32.0))
    high = pair(rope.number("beta_slow", 1.0))
    if rope.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    width = high - low or 0.001
    ramp = [min(max((one - low) / width, 0), 1) for one in range(size // 2)]
    scales = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    if not all(scales):
        scales = 1.0, 0.0
    first, second = (1 + 0.1 * one * math.log(factor) for one in scales)
    return tuple(1 / (1 - one + one / factor) for one in ramp), first / second
