"""What the engine relies on, whichever program computes a row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve_models.registry import load_model
from jserve_models.steps import StepShape

SHAPE = StepShape(num_rows=4, num_blocks=3, block_tokens=32)
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny", seed=0, dtype="float32")


def tokens_of(seed, count):
    return np.random.default_rng(seed).integers(0, 256, count).tolist()


def test_a_row_agrees_across_shapes_rows_and_chunkings(tiny, paged_run, piece):
    tokens = tokens_of(3, 150)
    wanted = paged_run(tiny).prefill(SHAPE, "a", tokens)
    cut = paged_run(tiny)
    cut.prefill(SHAPE, "b", tokens_of(4, 90))
    begin = 0
    for end in (1, 33, 63, 64, 65, 149):
        cut.prefill(SHAPE, "a", tokens[begin:end], start=begin)
        begin = end
    decode_alone = StepShape(num_rows=2, num_blocks=0, block_tokens=32)
    last = piece("a", 149, tokens[149:], [1])
    for shape in (SHAPE, decode_alone):
        got = cut.step(shape, [last])[1]  # the same write again, the same place
        np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)
        assert got.argmax() == wanted.argmax()
    blocks_alone = StepShape(num_rows=0, num_blocks=1, block_tokens=32)
    got = paged_run(tiny).prefill(blocks_alone, "a", tokens)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)


def test_padding_is_finite_and_writes_nothing(tiny, paged_run):
    run = paged_run(tiny)
    run.prefill(SHAPE, "a", tokens_of(6, 70))
    before = jax.tree.map(np.array, run.kv)
    logits = run.step(SHAPE, [])
    assert np.isfinite(logits).all()
    for old, new in zip(before, run.kv, strict=True):
        np.testing.assert_array_equal(old, np.array(new))


def test_bfloat16_is_near_float32(tiny, paged_run):
    tokens = tokens_of(7, 40)
    half = load_model("tiny", seed=0, dtype="bfloat16")
    cast = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half.leaves)
    same = dataclasses.replace(tiny, leaves=cast)
    wanted = paged_run(same).prefill(SHAPE, "a", tokens)
    run = paged_run(half, dtype="bfloat16")
    got = run.prefill(SHAPE, "a", tokens)
    assert got.dtype == np.float32
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
