"""Where tokens are written, and that nothing else is touched."""

import jax
import jax.numpy as jnp
import numpy as np

from jserve_models.steps import (
    StepInputs,
    StepShape,
    lay_out,
    write_kv,
)

NUM_PAGES, PAGE_SIZE = 6, 4
jitted_lay_out = jax.jit(lay_out, static_argnums=(1, 2, 3))


def make_inputs():
    """A decode at position 5, a padding decode, a block of 3 tokens from 6."""
    return StepInputs(
        tokens=jnp.arange(6, dtype=jnp.int32),
        row_start=jnp.array([5, 0, 6], jnp.int32),
        row_len=jnp.array([1, 0, 3], jnp.int32),
        page_table=jnp.array([[4, 2, 6], [6, 6, 6], [0, 3, 5]], jnp.int32),
        logit_rows=jnp.array([2, 0, 3], jnp.int32),  # the last pads
    )


SHAPE = StepShape(num_rows=2, num_blocks=1, block_tokens=4)


def test_positions_slots_and_last_tokens():
    layout = jitted_lay_out(make_inputs(), SHAPE, NUM_PAGES, PAGE_SIZE)
    assert layout.positions.tolist() == [5, 0, 6, 7, 8, 9]
    # The decode's second page; discarded; the block's second page, its third, and
    # its padding token is discarded too.
    assert layout.write_page.tolist() == [2, 6, 3, 3, 5, 6]
    assert layout.write_offset.tolist()[:5] == [1, 0, 2, 3, 0]
    assert layout.logit_token.tolist()[:2] == [4, 0]
    assert [int(group.num_live_pages) for group in layout.groups] == [2, 3]


def test_writes_touch_their_layer_only_and_padding_nothing():
    layout = jitted_lay_out(make_inputs(), SHAPE, NUM_PAGES, PAGE_SIZE)
    write = jax.jit(write_kv, static_argnums=5)
    cache = np.zeros((3 * NUM_PAGES, 2, PAGE_SIZE, 5), np.float32)
    values = np.arange(1, 7)[:, None, None] * np.ones((6, 2, 5), np.float32)
    kv = (cache.transpose(0, 1, 3, 2), cache)
    for layer in range(3):
        k, v = write(kv, -values, values, layout, np.int32(layer), NUM_PAGES)
        wanted = np.zeros(cache.shape)
        slots = {(2, 1): 1, (3, 2): 3, (3, 3): 4, (5, 0): 5}
        for (page, offset), value in slots.items():
            wanted[layer * NUM_PAGES + page, :, offset] = value
        np.testing.assert_array_equal(v, wanted)
        np.testing.assert_array_equal(k, -wanted.transpose(0, 1, 3, 2))
