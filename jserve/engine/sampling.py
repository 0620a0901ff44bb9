"""Logits to tokens, on the device, inside the head's program.

The draw of a token depends on (seed, position) and its logits, never on the row, the
bucket or the neighbours, so a request gets the same tokens whatever runs beside it.
Tokens are drawn by the Gumbel-max trick: the token with the highest
`logit / temperature + noise` wins, and the gap to the second is the margin of the
decision.

Before that, the logits of some requests are adjusted by biases and penalties, which
depend on what their slot holds: `SlotSampling`.

`R` is the number of rows that may sample, `S` that of slots, `V` the size of the
vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jserve_sched.requests.request import (
    MAX_BAD_WORDS,
    MAX_BIASES,
    MAX_LOGPROBS,
    MAX_WORD_TOKENS,
)

_NEVER = -1e30  # finite, so that no row can turn into NaN
_DIGIT_BITS = 4  # of a key, found in one pass on a GPU
_STRETCH = 128  # tokens; vocabularies are multiples of it, or are searched whole
IN_PROMPT = 1 << 15  # in a count of outputs
MAX_COUNT = IN_PROMPT - 1  # where that of a token stays


class SlotSampling(NamedTuple):
    """What adjusts the logits of each slot's request, if anything does.

    Attributes:
      counts: [S, V] uint16, how often a token is in the output, `MAX_COUNT` at most;
        `IN_PROMPT` is added if it is in the prompt.
      bias_tokens: [S, `MAX_BIASES`] int32 tokens with a bias; negative for none.
      biases: [S, `MAX_BIASES`] float32 of those.
      bad_words: [S, `MAX_BAD_WORDS`, `MAX_WORD_TOKENS`] int32 words that may not come,
        with their last tokens at the end; negative before them.
      recent: [S, `MAX_WORD_TOKENS` - 1] int32, the last tokens of the output; negative
        for none.
    """

    counts: Any
    bias_tokens: Any
    biases: Any
    bad_words: Any
    recent: Any


def empty_slots(num_slots: int, vocab_size: int) -> SlotSampling:
    """Returns the state of slots whose requests adjust nothing, on the host."""
    return SlotSampling(
        counts=np.zeros((num_slots, vocab_size), np.uint16),
        bias_tokens=np.full((num_slots, MAX_BIASES), -1, np.int32),
        biases=np.zeros((num_slots, MAX_BIASES), np.float32),
        bad_words=np.full((num_slots, MAX_BAD_WORDS, MAX_WORD_TOKENS), -1, np.int32),
        recent=np.full((num_slots, MAX_WORD_TOKENS - 1), -1, np.int32),
    )


class Logprobs(NamedTuple):
    """Log-probabilities of the model, before any adjustment; zeros if none are asked.

    Attributes:
      drawn: [R] float32, that of the token drawn.
      rank: [R] int32, its place among all tokens; 1 is the likeliest.
      top_tokens: [R, `MAX_LOGPROBS`] int32, the likeliest tokens.
      top: [R, `MAX_LOGPROBS`] float32, theirs.
    """

    drawn: jax.Array
    rank: jax.Array
    top_tokens: jax.Array
    top: jax.Array


class RowSampling(NamedTuple):
    """How each row's token is drawn; every field but `banned` is `[R]`."""

    temperature: jax.Array  # float32; 0 is greedy
    top_k: jax.Array  # int32; 0 keeps all
    top_p: jax.Array  # float32 in (0, 1]
    min_p: jax.Array  # float32 in [0, 1]
    seed: jax.Array  # uint32
    position: jax.Array  # int32 position of the token drawn
    banned: jax.Array  # [R, n] int32 tokens that may not come yet; negative for none
    slot: jax.Array  # int32; S for padding
    is_adjusted: jax.Array  # bool; whether its slot's state and the penalties apply
    is_only_biased: jax.Array  # bool; whether only tokens with a bias may come
    repetition_penalty: jax.Array  # float32 factor; 1 for none
    frequency_penalty: jax.Array  # float32, for each time a token came
    presence_penalty: jax.Array  # float32, if it came at all
    wants_logprobs: jax.Array  # bool
    is_masked: jax.Array  # bool; whether its mask applies


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


def adjust(logits: jax.Array, sampling: RowSampling, slots: SlotSampling) -> jax.Array:
    """Returns `[R, V]` logits with the biases and penalties of their requests.

    In vLLM's order: what is forbidden, biases, then penalties. The repetition penalty
    (arXiv 1909.05858) is of prompt and output, the others (OpenAI's) of the output.
    """

    def adjusted(logits: jax.Array) -> jax.Array:
        rows = jnp.arange(len(logits))[:, None]
        mine = jax.tree.map(lambda one: one.at[sampling.slot].get(mode="clip"), slots)
        # Biases, and what only they allow.
        nowhere = logits.shape[-1]
        tokens = jnp.where(mine.bias_tokens < 0, nowhere, mine.bias_tokens)
        kept = logits.at[rows, tokens].get(mode="fill", fill_value=0.0)
        found = jnp.where(sampling.is_only_biased[:, None], _NEVER, logits)
        found = found.at[rows, tokens].set(kept + mine.biases, mode="drop")
        # Words of which all but the last token has come.
        before, last = mine.bad_words[..., :-1], mine.bad_words[..., -1]
        has_come = (before < 0) | (before == mine.recent[:, None])
        is_banned = jnp.all(has_come, axis=-1) & (last >= 0)
        banned = jnp.where(is_banned, last, nowhere)
        found = found.at[rows, banned].set(_NEVER, mode="drop")
        # Penalties.
        factor = jnp.where(mine.counts > 0, sampling.repetition_penalty[:, None], 1.0)
        num_out = (mine.counts & MAX_COUNT).astype(jnp.float32)
        found = jnp.where(found > 0, found / factor, found * factor)
        found -= sampling.frequency_penalty[:, None] * num_out
        found -= sampling.presence_penalty[:, None] * (num_out > 0)
        return jnp.where(sampling.is_adjusted[:, None], found, logits)

    has_some = jnp.any(sampling.is_adjusted)
    result: jax.Array = jax.lax.cond(has_some, adjusted, lambda same: same, logits)
    return result


def apply_masks(
    logits: jax.Array, sampling: RowSampling, masks: jax.Array
) -> jax.Array:
    """Returns `[R, V]` logits of which those are forbidden whose bit is 0.

    If all others are forbidden for another reason, one of those comes.

    Args:
      masks: [R, `mask_words(V)`] int32; bit `t % 32` of word `t // 32` is of token t.
    """

    def masked(logits: jax.Array) -> jax.Array:
        bits = masks[:, :, None] >> jnp.arange(32, dtype=jnp.int32)
        may_come = bits.reshape(len(logits), -1)[:, : logits.shape[-1]] & 1
        is_open = (may_come > 0) | ~sampling.is_masked[:, None]
        return jnp.where(is_open, logits, 2 * _NEVER)

    has_some = jnp.any(sampling.is_masked)
    result: jax.Array = jax.lax.cond(has_some, masked, lambda same: same, logits)
    return result


def mask_words(vocab_size: int) -> int:
    """Returns the length of a mask of all tokens."""
    return -(-vocab_size // 32)


def remember(
    slots: SlotSampling, sampling: RowSampling, tokens: jax.Array
) -> SlotSampling:
    """Returns the slots' state after the tokens `[R]` that were drawn."""
    where = jnp.where(sampling.is_adjusted, sampling.slot, slots.counts.shape[0])
    count = slots.counts.at[where, tokens].get(mode="clip") & MAX_COUNT
    more = (count < MAX_COUNT).astype(jnp.uint16)
    counts = slots.counts.at[where, tokens].add(more, mode="drop")
    recent = slots.recent.at[where].get(mode="clip")
    recent = jnp.concatenate([recent[:, 1:], tokens[:, None]], axis=1)
    recent = slots.recent.at[where].set(recent, mode="drop")
    return slots._replace(counts=counts, recent=recent)


def logprobs(logits: jax.Array, tokens: jax.Array, sampling: RowSampling) -> Logprobs:
    """Returns what the model gave the tokens drawn, `[R]`, and the likeliest ones."""
    num_rows, size = logits.shape
    most = min(MAX_LOGPROBS, size)

    def found(logits: jax.Array) -> Logprobs:
        norms = jax.nn.logsumexp(logits, axis=-1)
        drawn = jnp.take_along_axis(logits, tokens[:, None], axis=-1)
        rank = jnp.sum(logits > drawn, axis=-1, dtype=jnp.int32) + 1
        # The likeliest tokens are in the stretches with the highest maxima.
        length = _STRETCH if size % _STRETCH == 0 else size
        stretches = logits.reshape(num_rows, -1, length)
        best = min(most, stretches.shape[1])
        _, places = jax.lax.top_k(jnp.max(stretches, axis=-1), best)
        some = jnp.take_along_axis(stretches, places[:, :, None], axis=1)
        top, within = jax.lax.top_k(some.reshape(num_rows, -1), most)
        stretch = jnp.take_along_axis(places, within // length, axis=1)
        top_tokens = (stretch * length + within % length).astype(jnp.int32)
        padding = ((0, 0), (0, MAX_LOGPROBS - most))
        return Logprobs(
            drawn=drawn[:, 0] - norms,
            rank=rank,
            top_tokens=jnp.pad(top_tokens, padding),
            top=jnp.pad(top - norms[:, None], padding),
        )

    def none(logits: jax.Array) -> Logprobs:
        zeros = jnp.zeros((num_rows, MAX_LOGPROBS))
        ints = zeros.astype(jnp.int32)
        return Logprobs(zeros[:, 0], ints[:, 0], ints, zeros)

    result: Logprobs = jax.lax.cond(
        jnp.any(sampling.wants_logprobs), found, none, logits
    )
    return result


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
    return jnp.where(keep, scaled, -jnp.inf)  # below what is forbidden, too


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
