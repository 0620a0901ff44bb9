"""What the engine relies on, whichever program computes a row."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve_models.attention import page_loop
from jserve_models.decoder import Decoder
from jserve_models.registry import load_model
from jserve_models.steps import StepInputs, StepShape

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


def test_tokens_and_positions_matter(tiny, paged_run):
    tokens = tokens_of(5, 150)
    run = paged_run(tiny)
    base = run.prefill(SHAPE, "base", tokens)
    assert 1.0 < base.std() < 4.0
    early = run.prefill(SHAPE, "early", [(tokens[0] + 1) % 256, *tokens[1:]])
    swapped = run.prefill(SHAPE, "swapped", [*tokens[:-2], tokens[0], tokens[-1]])
    shifted = run.prefill(SHAPE, "shifted", tokens[1:])
    for other in (early, swapped, shifted):
        assert np.abs(other - base).max() > 100 * TOLERANCE


def test_padding_is_finite_and_writes_nothing(tiny, paged_run):
    run = paged_run(tiny)
    run.prefill(SHAPE, "a", tokens_of(6, 70))
    before = jax.tree.map(np.array, run.kv)
    logits = run.step(SHAPE, [])
    assert np.isfinite(logits).all()
    for old, new in zip(before, run.kv, strict=True):
        np.testing.assert_array_equal(old, np.array(new))


def test_twice_the_attention_scale_is_as_twice_the_queries(tiny, paged_run):
    config = dataclasses.replace(tiny.config, attention_scale=2 * 32**-0.5)
    structure = Decoder(config)
    scaled = dataclasses.replace(tiny, config=config, forward=structure.forward)
    is_query = [leaf.path == "layers.attention.q.kernel" for leaf in structure.leaves]
    leaves = [
        tuple(2 * part for part in leaf) if twice else leaf
        for twice, leaf in zip(is_query, tiny.leaves, strict=True)
    ]
    doubled = dataclasses.replace(tiny, leaves=leaves)
    got, wanted, plain = (
        paged_run(model).prefill(SHAPE, "a", tokens_of(8, 90))
        for model in (scaled, doubled, tiny)
    )
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)
    assert np.abs(got - plain).max() > 100 * TOLERANCE


def abstract_step(model, shape, *, num_pages, page_size, max_pages, dtype="float32"):
    num_all = shape.num_rows + shape.num_blocks
    kv = tuple(
        jax.ShapeDtypeStruct(part, jnp.dtype(dtype))
        for part in model.kv_shapes(num_pages, page_size)
    )
    leaves = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.leaves
    )
    sizes = (
        (shape.num_rows + shape.num_blocks * shape.block_tokens,),
        (num_all,),
        (num_all,),
        (num_all, max_pages),
        (num_all,),
    )
    parts: Any = (jax.ShapeDtypeStruct(size, jnp.int32) for size in sizes)
    return leaves, kv, StepInputs(*parts)


@pytest.mark.parametrize(
    ("platform", "dtype"), [("tpu", "bfloat16"), ("cuda", "float32")]
)
def test_lowers_for_accelerators(platform, dtype):
    model = load_model("tiny", seed=0, dtype=dtype)
    structure = Decoder(model.config, page_loop)
    model = dataclasses.replace(
        model, forward=structure.forward, attention=structure.attention
    )
    shape = StepShape(8, 4, 32)
    arguments = abstract_step(
        model, shape, num_pages=64, page_size=128, max_pages=8, dtype=dtype
    )

    def step(leaves, kv, inputs):
        return model.forward(leaves, kv, inputs, shape)

    exported = jax.export.export(jax.jit(step), platforms=[platform])(*arguments)
    assert exported.platforms == (platform,)
    # One scatter for keys and values, in every layer.
    num_scatters = exported.mlir_module().count('"stablehlo.scatter"(')
    assert num_scatters == model.config.num_layers


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
