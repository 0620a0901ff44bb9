"""What the TPU's kernel is given, and what it does not take."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import (
    dynamic_validate_inputs,
    ref_ragged_paged_attention,
)

from jserve_models.attention import AttentionUse, tpu
from jserve_models.attention.choose import choose_attention
from jserve_models.config import NAMED
from jserve_models.steps import StepInputs, StepShape, lay_out

NUM_PAGES, PAGE_SIZE, MAX_PAGES = 40, 8, 4
HEAD_DIM = 4
SHARED = 37  # first page of two requests with one prefix
PADDING = (0, 0, "")
# Rows: start, length, request. Blocks have four tokens.
STEPS = {
    "decodes, some padding": (4, [(30, 1, "a"), PADDING, (7, 1, "b"), PADDING]),
    "blocks of a chunk": (
        0,
        [(0, 4, "c"), (4, 4, "c"), (8, 3, "c"), (20, 4, "d"), PADDING, PADDING],
    ),
    "mixed, page borders": (
        3,
        [
            *((8, 1, "a"), (15, 1, "b"), PADDING),
            *((4, 4, "c"), (8, 4, "e"), (12, 4, "e"), (28, 4, "d"), PADDING),
        ],
    ),
    "no decode, a full context": (
        2,
        [PADDING, PADDING, (20, 4, "a"), (24, 4, "a"), (28, 4, "a")],
    ),
    "padding alone": (2, [PADDING] * 4),
}


def make_step(num_rows, rows):
    """Returns the shape and inputs of a step, and the pages of its requests."""
    shape = StepShape(num_rows, len(rows) - num_rows, 4)
    pages = np.random.default_rng(1).permutation(SHARED).tolist()
    tables = {"": [NUM_PAGES] * MAX_PAGES}
    for start, length, name in rows:
        used = -(-(start + length) // PAGE_SIZE)
        table = tables.setdefault(name, [NUM_PAGES] * MAX_PAGES)
        for index in range(used):
            if table[index] == NUM_PAGES:
                is_shared = name in "ce" and not index
                table[index] = SHARED if is_shared else pages.pop()
    start, length = np.array([row[:2] for row in rows], np.int32).T
    inputs = StepInputs(
        tokens=jnp.zeros(num_rows + 4 * shape.num_blocks, jnp.int32),
        row_start=jnp.asarray(start),
        row_len=jnp.asarray(length),
        page_table=jnp.array([tables[row[2]] for row in rows], jnp.int32),
        logit_rows=jnp.zeros(1, jnp.int32),
    )
    return shape, inputs, tables


@functools.partial(jax.jit, static_argnums=1)
def find_sequences(inputs, shape):
    return tpu.sequences(lay_out(inputs, shape, NUM_PAGES, PAGE_SIZE).groups)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_the_reference_finds_each_tokens_own_context(step):
    num_rows, rows = step
    shape, inputs, tables = make_step(num_rows, rows)
    rng = np.random.default_rng(0)
    sizes = (len(inputs.tokens), 2, HEAD_DIM), (NUM_PAGES + 1, PAGE_SIZE, 2, HEAD_DIM)
    q, cache = (rng.normal(size=size).astype(np.float32) for size in sizes)
    found = find_sequences(inputs, shape)
    dynamic_validate_inputs(jnp.asarray(q), jnp.asarray(cache), *found)
    # The reference loops over them in Python.
    known: Any = [np.asarray(part) for part in found]
    reference = jax.jit(lambda *arrays: ref_ragged_paged_attention(*arrays, *known))
    out = reference(q, cache)
    first = 0
    for index, (start, length, name) in enumerate(rows):
        context = np.concatenate(cache[tables[name]])
        for offset in range(length):
            seen = context[: start + offset + 1]
            weights = np.exp(q[first + offset] @ seen[:, 0].T)
            wanted = weights @ seen[:, 1] / weights.sum(axis=1, keepdims=True)
            np.testing.assert_allclose(out[first + offset], wanted, rtol=0, atol=2e-6)
        first += 1 if index < num_rows else shape.block_tokens


def test_a_chunk_is_one_sequence_and_padding_behind_is_none():
    shape, inputs, tables = make_step(*STEPS["mixed, page borders"])
    found = find_sequences(inputs, shape)
    assert found.num_seqs.tolist() == [6]
    # Two decodes, a row of padding, c's block, e's two blocks, d's.
    assert found.cu_q_lens.tolist()[:7] == [0, 1, 2, 3, 7, 15, 19]
    assert set(found.cu_q_lens.tolist()[7:]) == {19}
    assert found.kv_lens.tolist()[:6] == [9, 16, 1, 8, 16, 32]
    names = ["a", "b", "", "c", "e", "d"]
    assert found.page_table.tolist()[:6] == [tables[name] for name in names]


def use(platform="tpu", num_rows=64, dtype="float32", **fields):
    return AttentionUse(
        config=dataclasses.replace(NAMED["llama-8b"], **fields),
        platform=platform,
        dtype=np.dtype(dtype),
        page_size=128,
        num_rows=num_rows,
        max_pages_per_row=1024,
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (use("cpu"), "attention='tpu': tpu needs a TPU, and the platform is cpu"),
        (use(head_dim=256), "takes no head_dim=256, at most 128"),
        (use(dtype="float16"), "takes no dtype=float16"),
        (
            use(dtype="float8_e4m3fn", num_kv_heads=1),
            "takes 2 KV heads or more of dtype=float8_e4m3fn",
        ),
        (use(num_rows=241), "of 983040 bytes at most, and 241 rows of 1024 pages have"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused_or_passed_over(asked, message):
    with pytest.raises(ValueError, match=message):
        choose_attention("tpu", asked)
    backend, line = choose_attention("auto", asked)
    if asked.platform == "tpu":
        assert message.split(": ")[-1] in line
        assert backend.__name__.endswith("page_loop")
    else:
        assert line == "attention: cpu (on cpu)"


def test_the_device_decides():
    assert choose_attention("auto", use("tpu"))[1] == "attention: tpu (on tpu)"
    line = choose_attention("auto", use("gpu"))[1]  # of float32, or of an older JAX
    assert line.startswith("attention: page_loop (gpu ") and line.endswith("; on gpu)")


@pytest.mark.parametrize(
    ("given", "padded"), [(1, 1), (3, 4), (4, 4), (5, 8), (10, 16)]
)
def test_the_memory_of_padded_heads_is_charged(given, padded):
    config = dataclasses.replace(NAMED["tiny"], num_heads=2 * given, num_kv_heads=given)
    assert tpu.kv_shapes(config, 3, 16) == ((4 * (3 + 1), 16, 2 * padded, 128),)
