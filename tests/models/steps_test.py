"""Where tokens stand and are written."""

import jax
import jax.numpy as jnp

from jserve_models.steps import StepInputs, StepShape, lay_out

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
    assert [group.num_pages.tolist() for group in layout.groups] == [[2, 0], [3]]
