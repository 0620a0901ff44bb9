"""A model whose next token is computable by hand, from all of its context.

It writes each token's value into the key cache and its position into the value
cache, then adds up `weight(position) * value(token)` over the context *as read back
through the page table*. A page lost, shared wrongly, read too far or written at the
wrong position changes the sum, and with it the next token.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jserve_models.attention import cpu
from jserve_models.attention.cache import write_kv
from jserve_models.config import NAMED
from jserve_models.decoder import Weight
from jserve_models.matrices import Matrix
from jserve_models.steps import KvCache, RowGroup, StepInputs, StepShape, lay_out

TOY = NAMED["toy"]
ATTENTION = cpu  # whose cache it uses, everywhere
MARGIN = 30.0  # the next token's logit; all others are zero

_MODULUS = TOY.vocab_size  # prime, and no weight or value is a multiple of it
_DIGIT = 128  # bfloat16 holds such integers exactly
_SCALE = _DIGIT ** np.arange(TOY.head_dim, dtype=np.int32)


def toy_next_token(context: Sequence[int]) -> int:
    """Returns the token that the toy model answers to a context.

    The token `t` at position `i` adds `(i mod (vocab - 1) + 1) * (t + 1)`; the
    answer is the sum modulo the vocabulary.
    """
    return (
        sum(
            (position % (_MODULUS - 1) + 1) * (token + 1)
            for position, token in enumerate(context)
        )
        % _MODULUS
    )


def toy_leaves() -> list[jax.Array]:
    """Returns the toy's weights: the value of each token."""
    return [jnp.arange(1, TOY.vocab_size + 1, dtype=jnp.int32)]


def forward(
    leaves: Sequence[Weight],
    kv: KvCache,
    inputs: StepInputs,
    shape: StepShape,
) -> tuple[jax.Array, KvCache]:
    """Runs one step; the same contract as `decoder.Decoder.forward`."""
    layout = lay_out(inputs, shape, *ATTENTION.pool_size(kv, TOY.num_layers))
    layer = jnp.int32(0)
    values = _digits(jnp.asarray(leaves[0])[inputs.tokens])
    positions = _digits(layout.positions)
    kv = write_kv(kv, values, positions, layout, layer)
    sums = [_sum_context(kv, group).reshape(-1) for group in layout.groups]
    return jnp.concatenate(sums)[layout.logit_token], kv


def logits(head: Matrix, answers: jax.Array) -> jax.Array:
    """Returns float32 logits [S, vocab] with a margin for the answers [S]."""
    del head
    return MARGIN * jax.nn.one_hot(answers, TOY.vocab_size, dtype=jnp.float32)


def _digits(numbers: jax.Array) -> jax.Array:
    return (numbers[:, None, None] // _SCALE) % _DIGIT


def _number(digits: jax.Array) -> jax.Array:
    number: jax.Array = (digits.astype(jnp.int32) * _SCALE).sum(axis=-1)
    return number


def _sum_context(kv: KvCache, group: RowGroup) -> jax.Array:
    """Returns the sum over the context of each token of the group, [rows, width]."""
    page_size = kv[1].shape[2]

    def add_page(index: jax.Array, total: jax.Array) -> jax.Array:
        page = group.page_table[:, index]
        keys = kv[0].at[page, 0].get(mode="clip")  # [rows, D, P]
        value = _number(keys.transpose(0, 2, 1))  # [rows, P]
        position = _number(kv[1].at[page, 0].get(mode="clip"))
        term = (position % (_MODULUS - 1) + 1) * value % _MODULUS
        place = index * page_size + jnp.arange(page_size, dtype=jnp.int32)
        is_seen = place <= group.positions[:, :, None]  # [rows, width, P]
        return total + jnp.where(is_seen, term[:, None], 0).sum(axis=-1)

    total: jax.Array = jnp.zeros(group.positions.shape, jnp.int32)
    total = jax.lax.fori_loop(0, jnp.max(group.num_pages), add_page, total)
    return total % _MODULUS
