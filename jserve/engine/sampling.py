"""Logits to tokens, on the device, inside the head's program.

The draw of a token depends on (seed, position) and its logits, never on the row, the
bucket or the neighbours, so a request gets the same tokens whatever runs beside it.
Tokens are drawn by the Gumbel-max trick: the token with the highest
`logit / temperature + noise` wins, and the gap to the second is the margin of the
decision.

`R` is the number of rows that may sample, `V` the size of the vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_NEVER = -1e30  # finite, so that no row can turn into NaN
_DIGIT_BITS = 4  # of a key, found in one pass on a GPU
_STRETCH = 128  # tokens; vocabularies are multiples of it, or are searched whole


class RowSampling(NamedTuple):
    """How each row's token is drawn; every field but `banned` is `[R]`."""

    temperature: jax.Array  # float32; 0 is greedy
    top_k: jax.Array  # int32; 0 keeps all
    top_p: jax.Array  # float32 in (0, 1]
    min_p: jax.Array  # float32 in [0, 1]
    seed: jax.Array  # uint32
    position: jax.Array  # int32 position of the token drawn
    banned: jax.Array  # [R, n] int32 tokens that may not come yet; negative for none


def argmax(values: jax.Array) -> jax.Array:
    """Returns the first place of each row's maximum, `[R]` int32.

    As `jnp.argmax`, in passes that XLA:CPU vectorises: its reduction over pairs of
    value and index is several times slower. Only one stretch of a row is searched, the
    first that has the maximum.
    """
    num_rows, size = values.shape
    length = _STRETCH if size % _STRETCH == 0 else size
    stretches = values.reshape(num_rows, -1, length)
    tops = jnp.max(stretches, axis=-1)
    best = jnp.max(tops, axis=-1, keepdims=True)
    # NaN equals nothing, so that the first place is found.
    stretch = jnp.argmax(tops == best, axis=-1)
    found = jnp.take_along_axis(stretches, stretch[:, None, None], axis=1)[:, 0]
    place = stretch * length + jnp.argmax(found == best, axis=-1)
    return place.astype(jnp.int32)


def scores(logits: jax.Array, sampling: RowSampling) -> jax.Array:
    """Returns `[R, V]` scores whose maximum is the token drawn.

    Top-k, then top-p over what is left, then min-p, as other servers apply them;
    all are exact, ties included, whatever the size of the vocabulary.
    """
    # Negative ids would count from the end: past the end they are dropped.
    banned = jnp.where(sampling.banned < 0, logits.shape[-1], sampling.banned)
    rows = jnp.arange(logits.shape[0])[:, None]
    logits = logits.at[rows, banned].set(_NEVER, mode="drop")
    is_drawn = sampling.temperature > 0
    scaled = logits / jnp.where(is_drawn, sampling.temperature, 1.0)[:, None]
    is_truncated = (sampling.top_k > 0) | (sampling.top_p < 1) | (sampling.min_p > 0)
    scaled = jax.lax.cond(
        jnp.any(is_drawn & is_truncated),
        _truncate,
        lambda x, _: x,
        scaled,
        sampling,
    )
    noise = _noise(sampling.seed, sampling.position, logits.shape[-1])
    return jnp.where(is_drawn[:, None], scaled + noise, logits)


def _noise(seed: jax.Array, position: jax.Array, size: int) -> jax.Array:
    """Returns Gumbel noise `[R, size]`, by counters that are hashed three times.

    JAX's own generator gives no better draws, and takes a sixth of the time in which a
    program is compiled.
    """
    keys = _mix(seed)[:, None], _mix(~position.astype(jnp.uint32))[:, None]
    bits = _mix(_mix(jnp.arange(size, dtype=jnp.uint32) ^ keys[0]) ^ keys[1])
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23  # in (0, 1)
    return -jnp.log(-jnp.log(uniform))


def _mix(values: jax.Array) -> jax.Array:
    """Returns uint32 hashes, one to one: the last steps of MurmurHash3."""
    values = (values ^ (values >> 16)) * jnp.uint32(0x85EBCA6B)
    values = (values ^ (values >> 13)) * jnp.uint32(0xC2B2AE35)
    return values ^ (values >> 16)


def _truncate(scaled: jax.Array, sampling: RowSampling) -> jax.Array:
    """Drops the tokens that top-k, top-p and min-p leave out."""
    size = scaled.shape[-1]
    keys = _ordered_keys(scaled)
    count = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, size), size)
    ones = jnp.ones_like(scaled)
    keep = keys >= _threshold(keys, ones, count.astype(jnp.float32))[:, None]
    probs = jnp.where(keep, jax.nn.softmax(scaled, axis=-1), 0.0)
    mass = sampling.top_p * jnp.sum(probs, axis=-1)
    by_mass = keys >= _threshold(keys, probs, mass)[:, None]
    # The likeliest token stays, even if `top_p` is too small for float32.
    is_best = keys == jnp.max(keys, axis=-1, keepdims=True)
    keep &= by_mass | is_best | (sampling.top_p >= 1)[:, None]
    floor = sampling.min_p * jnp.max(probs, axis=-1)
    keep &= probs >= floor[:, None]
    return jnp.where(keep, scaled, _NEVER)


def _ordered_keys(values: jax.Array) -> jax.Array:
    """Returns uint32 keys in the order of the float32 values."""
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign, ~bits, bits | sign)


def _threshold(keys: jax.Array, weights: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the highest key `t` whose tokens `keys >= t` weigh at least `target`.

    By passes over the row from the highest digits, without a sort.

    Args:
      keys: `[R, V]` uint32.
      weights: `[R, V]` float32.
      target: `[R]` float32.
    """
    threshold: jax.Array = jax.lax.platform_dependent(
        keys, weights, target, cuda=_threshold_of_digits, default=_threshold_of_bits
    )
    return threshold


def _threshold_of_bits(
    keys: jax.Array, weights: jax.Array, target: jax.Array
) -> jax.Array:
    def try_bit(index: jax.Array, best: jax.Array) -> jax.Array:
        bit = jnp.uint32(31) - index.astype(jnp.uint32)
        candidate = best | (jnp.uint32(1) << bit)
        weight = jnp.sum(jnp.where(keys >= candidate[:, None], weights, 0.0), axis=-1)
        return jnp.where(weight >= target, candidate, best)

    lowest = jnp.zeros(keys.shape[0], jnp.uint32)
    threshold: jax.Array = jax.lax.fori_loop(0, 32, try_bit, lowest)
    return threshold


def _threshold_of_digits(
    keys: jax.Array, weights: jax.Array, target: jax.Array
) -> jax.Array:
    """The same in few passes, each of which weighs what is above each digit.

    A loop in a branch would keep the program from being one CUDA graph, and the host
    would wait for it. With the shift as data all passes are one kernel.
    """
    best = jnp.zeros(keys.shape[0], jnp.uint32)
    for first in range(32 - _DIGIT_BITS, -1, -_DIGIT_BITS):
        best, shift = jax.lax.optimization_barrier((best, jnp.uint32(first)))
        digits = range(1, 1 << _DIGIT_BITS)
        candidates = [best | jnp.uint32(digit) << shift for digit in digits]
        # One reduction, which reads the row once for all of them.
        found = jax.lax.reduce(
            [jnp.where(keys >= one[:, None], weights, 0.0) for one in candidates],
            [jnp.float32(0.0)] * len(candidates),
            lambda sums, more: [a + b for a, b in zip(sums, more, strict=True)],
            dimensions=(1,),
        )
        # What is above a higher digit weighs no more, so their count is the digit.
        digit = sum((weight >= target).astype(jnp.uint32) for weight in found)
        best |= digit << shift
    return best
