"""Quantised matrices, their product, and models that are stored in them."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve_models.decoder import Decoder
from jserve_models.matrices import Quantised, check_storage, product, quantise
from jserve_models.registry import load_model
from jserve_models.steps import StepShape
from tests import TESTS

LLAMA = str(TESTS / "golden" / "llama")
SHAPE = StepShape(num_rows=4, num_blocks=3, block_tokens=32)


def dequantised(found):
    if isinstance(found, Quantised):
        return found.values.astype(np.float32) * found.scale
    return found


def load(weights="auto"):
    return load_model(LLAMA, seed=0, dtype="float32", weights=weights)


@pytest.fixture
def matrix():
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(64, 48)) * np.geomspace(1e-3, 1e3, 48)
    drawn[:, 7] = 0.0
    return drawn.astype(np.float32)


@pytest.mark.parametrize("weights", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_is_that_of_the_dequantised_matrix(matrix, weights, dtype):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(5, 64)), dtype)
    found = quantise(matrix, weights)
    assert found.values.dtype.itemsize == 1 and found.scale.dtype == np.float32
    got = jax.jit(product)(x, jax.tree.map(jnp.asarray, found))
    assert got.dtype == x.dtype
    wanted = np.asarray(x, np.float32) @ dequantised(found)
    size = np.abs(wanted).max(axis=0)
    error = np.abs(np.asarray(got, np.float32) - wanted)
    assert (error <= (1e-5 if dtype == "float32" else 2**-8) * size).all()


@pytest.mark.parametrize(
    ("weights", "relative", "steps"), [("int8", 0.0, 0.5), ("fp8", 2**-4, 2**-10)]
)
def test_a_number_is_rounded_to_the_nearest(matrix, weights, relative, steps):
    found = quantise(matrix, weights)
    error = np.abs(dequantised(found) - matrix)
    assert (error <= 1.001 * (relative * np.abs(matrix) + steps * found.scale)).all()
    # Traced too, so that the shapes of a model need no weights.
    traced = jax.eval_shape(functools.partial(quantise, weights=weights), matrix)
    for one, other in zip(*map(jax.tree.leaves, (traced, found)), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_matrices_alone_are_stored_in_fewer_bits():
    models = {weights: load(weights) for weights in ("auto", "bfloat16", "int8")}
    paths = [leaf.path for leaf in Decoder(models["auto"].config).leaves]
    types_of = {
        weights: {
            path: tuple(x.dtype.name for x in jax.tree.leaves(leaf))
            for path, leaf in zip(paths, model.leaves, strict=True)
        }
        for weights, model in models.items()
    }
    for path in paths:
        layers = 3 if path.startswith("layers") else 1
        assert types_of["auto"][path] == ("float32",) * layers
        is_matrix = path == "head" or path.endswith("kernel")
        cast = "bfloat16" if is_matrix else "float32"
        assert types_of["bfloat16"][path] == (cast,) * layers
        parts = ["int8", "float32"] if is_matrix else ["float32"]
        assert types_of["int8"][path] == tuple(parts * layers)


def test_logits_are_those_of_the_dequantised_model(paged_run, piece):
    tokens = np.random.default_rng(3).integers(0, 96, 90).tolist()
    int8 = load("int8")
    same = dataclasses.replace(
        int8,
        leaves=jax.tree.map(
            dequantised, int8.leaves, is_leaf=lambda x: isinstance(x, Quantised)
        ),
    )
    wanted = paged_run(same).prefill(SHAPE, "a", tokens)
    alone = paged_run(int8)
    got = alone.prefill(SHAPE, "a", tokens)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)
    # The rule for tokens: neighbours change no bit, another program 1e-4 at most.
    last = piece("a", 89, tokens[89:], [1])
    other = piece("b", 0, tokens[:70], [4, 5, 6])
    first, again = alone.step(SHAPE, [last]), alone.step(SHAPE, [last, other])
    np.testing.assert_array_equal(first[1], again[1])
    np.testing.assert_allclose(first[1], wanted, rtol=0, atol=1e-4)


def test_what_a_device_has_no_fp8_for_is_refused():
    a100 = types.SimpleNamespace(compute_capability="8.0", device_kind="NVIDIA A100")
    b200 = types.SimpleNamespace(compute_capability="10.0", device_kind="NVIDIA B200")
    check_storage("int8", a100)
    check_storage("fp8", b200)
    check_storage("fp8", jax.devices()[0])
    with pytest.raises(ValueError, match=r"'fp8' needs .* 8\.9 .*A100 has 8\.0"):
        check_storage("fp8", a100)
    with pytest.raises(ValueError, match="weights='int4' is not one of auto, "):
        check_storage("int4", b200)
