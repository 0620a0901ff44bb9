"""The backend for NVIDIA GPUs: what it refuses, and its kernel against the CPU's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve_models.attention import AttentionUse, combined, cpu, gpu, paged_mosaic
from jserve_models.config import NAMED
from jserve_models.steps import StepInputs, StepShape, lay_out
from tests.models.attention import mosaic

NO_KERNEL = paged_mosaic.fault("bfloat16", 128, 128)
NUM_PAGES, PAGE_SIZE, LAYERS = 9, 32, 2
CONFIG = dataclasses.replace(
    NAMED["tiny"], num_layers=LAYERS, num_heads=4, num_kv_heads=2, head_dim=48
)
SHAPE = StepShape(num_rows=2, num_blocks=1, block_tokens=8)
ROWS = [(40, 1), (0, 0), (29, 5)]  # start and length; one pads, one fills its block
OPTIONS = {"scale": 0.2, "window": 30, "soft_cap": 3.0}


def test_says_why_there_is_no_kernel():
    use = AttentionUse(
        config=CONFIG,
        platform="cpu",
        dtype=np.dtype("bfloat16"),
        page_size=128,
        num_rows=4,
        max_pages_per_row=4,
    )
    assert gpu.fault(use) == "needs an NVIDIA GPU, and the platform is cpu"
    if NO_KERNEL is not None:
        assert NO_KERNEL.startswith("needs Mosaic GPU's mma, of JAX 0.11.2")
        return
    for arguments, reason in {
        ("float32", 128, 128): "takes no dtype=float32, but bfloat16, float16",
        ("bfloat16", 96, 128): "takes no head_dim=96, but 64, 128, 256",
        ("bfloat16", 128, 16): "takes no page_size=16, but 32, 64, 128, 256",
    }.items():
        assert paged_mosaic.fault(*arguments) == reason


def test_a_head_that_the_kernel_does_not_take_is_padded():
    def head_dim(size):
        config = dataclasses.replace(CONFIG, head_dim=size)
        ((*_, found),) = gpu.kv_shapes(config, NUM_PAGES, PAGE_SIZE)
        return found

    sizes = [16, 64, 96, 128, 192]
    assert [head_dim(size) for size in sizes] == [64, 64, 128, 128, 256]


@pytest.mark.skipif(NO_KERNEL is not None, reason=f"the kernel {NO_KERNEL}")
def test_answers_and_writes_like_the_cpu(quick_compiler):
    rng = np.random.default_rng(0)
    num_tokens = 2 + SHAPE.block_tokens
    heads = (CONFIG.num_heads, CONFIG.num_kv_heads, CONFIG.num_kv_heads)
    q, k, v = (
        jnp.asarray(rng.normal(size=(num_tokens, one, 48)), jnp.bfloat16)
        for one in heads
    )
    ((pages, *page),) = gpu.kv_shapes(CONFIG, NUM_PAGES, PAGE_SIZE)
    cache = np.zeros((pages, *page), jnp.bfloat16)
    cache[..., :48] = rng.normal(size=(pages, *page[:-1], 48))
    start, length = np.array(ROWS, np.int32).T
    table = rng.permutation(NUM_PAGES).reshape(3, 3).astype(np.int32)
    table[1] = NUM_PAGES
    zeros = np.zeros(num_tokens, np.int32)
    arrays = (zeros, start, length, table, zeros[:1])
    inputs = StepInputs(*(jnp.asarray(array) for array in arrays))

    def run(backend, dtype, kv):
        def step(q, k, v, kv, inputs):
            layout = lay_out(inputs, SHAPE, NUM_PAGES, PAGE_SIZE)
            tensors = [one.astype(dtype) for one in (q, k, v)]
            return backend.attend(*tensors, kv, layout, jnp.int32(1), **OPTIONS)

        out, kv = jax.jit(step)(q, k, v, kv, inputs)
        return np.asarray(out, np.float32), kv

    def separate(cache):
        """Returns keys and values as the CPU's cache has them."""
        each = np.asarray(cache, np.float32).reshape(LAYERS, NUM_PAGES + 1, *page)
        each = each[:, :-1, :, :, :48].reshape(-1, *page[:-1], 48)
        return each[:, :, 0::2].transpose(0, 2, 3, 1), each[:, :, 1::2].swapaxes(1, 2)

    with mosaic.interpreted():
        got, (written,) = run(gpu, jnp.bfloat16, (cache,))
    wanted, wanted_kv = run(cpu, jnp.float32, separate(cache))
    real = [0, *range(2, 7)]
    np.testing.assert_allclose(got[real], wanted[real], rtol=0, atol=2e-2)
    np.testing.assert_array_equal(got[1], 0)
    assert np.isfinite(got).all()
    for one, other in zip(separate(written), wanted_kv, strict=True):
        np.testing.assert_array_equal(one, other)
    assert combined.pool_size((written,), LAYERS) == (NUM_PAGES, PAGE_SIZE)
