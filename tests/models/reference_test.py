"""The page loop against a softmax written out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve_models.attention import reference
from jserve_models.steps import RowGroup

NUM_PAGES, PAGE_SIZE, KV_HEADS, HEADS, HEAD_DIM = 12, 8, 2, 6, 4
SCALE = HEAD_DIM**-0.5
jitted = jax.jit(reference.attend, static_argnames="scale")


def attend(q, k, v, group, first_page, scale=SCALE):
    return jitted(q, k, v, group, jnp.int32(first_page), scale=scale)


def make_case(width, starts):
    rng = np.random.default_rng(0)
    cache_shape = (2 * NUM_PAGES, KV_HEADS, PAGE_SIZE, HEAD_DIM)
    k, v = rng.normal(size=(2, *cache_shape)).astype(np.float32)
    k = np.ascontiguousarray(k.transpose(0, 1, 3, 2))  # tokens innermost
    q = rng.normal(size=(len(starts), width, HEADS, HEAD_DIM)).astype(np.float32)
    table: Any = rng.permutation(NUM_PAGES).reshape(len(starts), -1).astype(np.int32)
    positions: Any = (np.array(starts)[:, None] + np.arange(width)).astype(np.int32)
    num_pages = -(-(max(starts) + width) // PAGE_SIZE)
    return q, k, v, RowGroup(positions, table, jnp.int32(num_pages))


def dense(q, k, v, group, first_page, scale):
    out = np.zeros_like(q)
    for row, column in np.ndindex(q.shape[:2]):
        length = group.positions[row, column] + 1
        pages = first_page + group.page_table[row]
        keys = np.concatenate(k[pages], axis=2)[:, :, :length]
        values = np.concatenate(v[pages], axis=1)[:, :length]
        for head in range(HEADS):
            kv_head = head // (HEADS // KV_HEADS)
            scores = q[row, column, head] @ keys[kv_head] * scale
            weights = np.exp(scores - scores.max())
            out[row, column, head] = weights @ values[kv_head] / weights.sum()
    return out


@pytest.mark.parametrize(
    ("width", "starts", "scale"),
    [
        (1, [0, 7, 31], SCALE),
        (1, [8, 15, 16], SCALE),
        (5, [0, 3, 19], SCALE),
        (5, [0, 3, 19], 1.5),
    ],
)
def test_equals_dense_softmax(width, starts, scale):
    q, k, v, group = make_case(width, starts)
    out = attend(q, k, v, group, NUM_PAGES, scale)
    wanted = dense(q, k, v, group, NUM_PAGES, scale)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=2e-6)


def test_extra_pages_are_an_exact_no_op():
    q, k, v, group = make_case(1, [0, 5, 9])
    base = attend(q, k, v, group, 0)
    for extra in range(3, 5):
        longer = group._replace(num_live_pages=jnp.int32(extra))
        np.testing.assert_array_equal(base, attend(q, k, v, longer, 0))


def test_what_is_masked_does_not_matter():
    q, k, v, group = make_case(1, [0, 5, 9])
    base = attend(q, k, v, group, 0)
    table = group.page_table.copy()
    table[:2, 1:] = NUM_PAGES * 5  # unused entries past the end
    k[group.page_table[0, 0], :, :, 1:] = 1e4  # beyond the first row's only token
    group = group._replace(page_table=table)
    np.testing.assert_array_equal(base, attend(q, k, v, group, 0))
