"""Every backend against a softmax written out, and the rule for a row's neighbours."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve_models.attention import cpu, page_loop, tpu
from jserve_models.config import NAMED
from jserve_models.steps import StepInputs, StepShape, lay_out
from tests.ragged_attention import traceable_kernel

BACKENDS = {"cpu": cpu, "page_loop": page_loop, "tpu": tpu}
NUM_PAGES, PAGE_SIZE, MAX_PAGES = 40, 8, 6
KV_HEADS, HEADS, HEAD_DIM = 2, 6, 4
SHAPE = StepShape(num_rows=3, num_blocks=2, block_tokens=4)
SCALE = HEAD_DIM**-0.5
SINKS = np.linspace(-1.0, 2.0, HEADS, dtype=np.float32)
ROWS = [(31, 1), (0, 0), (5, 1), (19, 4), (6, 3)]  # start and length; one pads
VARIANTS = {
    "plain": {},
    "scale": {"scale": 1.5},
    "window": {"window": 7},
    "one page of window": {"window": PAGE_SIZE},
    "soft cap": {"soft_cap": 0.8},
    "sinks": {"sinks": SINKS},
    "all": {"window": 11, "soft_cap": 2.0, "sinks": SINKS},
}


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    monkeypatch.setattr(tpu, "_kernel", traceable_kernel)
    return BACKENDS[request.param]


def make_inputs(rows):
    """Every row has a page table of its own, whatever its length."""
    table = np.random.default_rng(1).permutation(NUM_PAGES)[: len(rows) * MAX_PAGES]
    start, length = np.array(rows, np.int32).T
    num_tokens = SHAPE.num_rows + SHAPE.num_blocks * SHAPE.block_tokens
    return StepInputs(
        tokens=jnp.zeros(num_tokens, jnp.int32),
        row_start=jnp.asarray(start),
        row_len=jnp.asarray(length),
        page_table=jnp.asarray(table.reshape(len(rows), -1).astype(np.int32)),
        logit_rows=jnp.zeros(1, jnp.int32),
    )


def make_arrays(backend):
    """Returns a cache of two layers, and the step's queries, keys and values."""
    rng = np.random.default_rng(0)
    config = dataclasses.replace(
        NAMED["tiny"],
        num_layers=2,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
    )
    shapes = backend.kv_shapes(config, NUM_PAGES, PAGE_SIZE)
    kv = tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)
    sizes = [(11, HEADS, HEAD_DIM), (11, KV_HEADS, HEAD_DIM), (11, KV_HEADS, HEAD_DIM)]
    return kv, [rng.normal(size=size).astype(np.float32) for size in sizes]


@functools.cache
def jitted(backend, **options):
    def step(q, k, v, kv, inputs):
        layout = lay_out(inputs, SHAPE, NUM_PAGES, PAGE_SIZE)
        sinks = SINKS if options.get("has_sinks") else None
        rest = {key: value for key, value in options.items() if key != "has_sinks"}
        layer = jnp.int32(1)
        return backend.attend(q, k, v, kv, layout, layer, sinks=sinks, **rest)

    return jax.jit(step)


def run(backend, rows, kv, tensors, *, inputs=None, sinks=None, **options):
    step = jitted(backend, **{"scale": SCALE} | options, has_sinks=sinks is not None)
    return step(*tensors, kv, make_inputs(rows) if inputs is None else inputs)


def tokens_of(row):
    """Returns where the tokens of a row stand on the token axis."""
    begin = row if row < 3 else 3 + 4 * (row - 3)
    return range(begin, begin + ROWS[row][1])


def pages_of(kv):
    """Returns views [2, N, P, K, D] on keys and values of each layer.

    A combined cache has one page more, and the TPU's wider heads.
    """
    if len(kv) == 1:
        layers = np.asarray(kv[0]).reshape(2, -1, *kv[0].shape[1:])[..., :HEAD_DIM]
        return layers[..., 0::2, :], layers[..., 1::2, :]
    shape = (2, NUM_PAGES, KV_HEADS)
    keys = np.asarray(kv[0]).reshape(*shape, HEAD_DIM, PAGE_SIZE)
    values = np.asarray(kv[1]).reshape(*shape, PAGE_SIZE, HEAD_DIM)
    return keys.transpose(0, 1, 4, 2, 3), values.transpose(0, 1, 3, 2, 4)


def dense(kv, q, *, scale=SCALE, window=None, soft_cap=None, sinks=None):
    """Returns the answers [T, H, D] from the written cache of layer 1."""
    table = np.asarray(make_inputs(ROWS).page_table)
    all_keys, all_values = (part[1] for part in pages_of(kv))
    out = np.zeros_like(q)
    for row, (start, _) in enumerate(ROWS):
        keys = np.concatenate(all_keys[table[row]])  # [tokens, K, D]
        values = np.concatenate(all_values[table[row]])
        for position, token in enumerate(tokens_of(row), start):
            seen = slice(max(position + 1 - (window or 10**6), 0), position + 1)
            for head in range(HEADS):
                kv_head = head // (HEADS // KV_HEADS)
                scores = keys[seen, kv_head] @ q[token, head] * scale
                if soft_cap is not None:
                    scores = soft_cap * np.tanh(scores / soft_cap)
                extra = [] if sinks is None else [sinks[head]]
                weights = np.exp(np.append(scores, extra))
                answer = weights[: len(scores)] @ values[seen, kv_head]
                out[token, head] = answer / weights.sum()
    return out


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_equals_dense_softmax(backend, options):
    kv, tensors = make_arrays(backend)
    if backend is tpu and "sinks" in options:
        with pytest.raises(ValueError, match="attention='tpu' takes no sinks"):
            run(backend, ROWS, kv, tensors, **options)
        return
    out, written = run(backend, ROWS, kv, tensors, **options)
    wanted = dense(written, tensors[0], **options)
    for row in range(len(ROWS)):
        at = list(tokens_of(row))
        np.testing.assert_allclose(out[at, :], wanted[at], rtol=0, atol=2e-6)
    assert np.isfinite(out).all()


def test_a_rows_bits_do_not_depend_on_its_neighbours(backend):
    kv, tensors = make_arrays(backend)
    for options in ({}, {"window": 7}):
        base, _ = run(backend, ROWS, kv, tensors, **options)
        for row in range(len(ROWS)):
            for start in (0, 13, 42):  # of all others: shorter, and longer
                rows = [
                    one if index == row else (start, one[1])
                    for index, one in enumerate(ROWS)
                ]
                got, _ = run(backend, rows, kv, tensors, **options)
                at = list(tokens_of(row))
                np.testing.assert_array_equal(got[at, :], base[at, :])


def test_what_is_masked_does_not_matter(backend):
    kv, tensors = make_arrays(backend)
    base, _ = run(backend, ROWS, kv, tensors)
    inputs = make_inputs(ROWS)
    table = np.array(inputs.page_table)
    table[2, 1:] = NUM_PAGES  # unused entries
    for part in pages_of(kv):
        part[:, NUM_PAGES:] = 1e4  # the discard page
        part[1, table[2, 0], 6:] = 1e4  # beyond the row's last token
    inputs = inputs._replace(page_table=jnp.asarray(table))
    got, _ = run(backend, ROWS, kv, tensors, inputs=inputs)
    np.testing.assert_array_equal(got[2], base[2])


def test_writes_touch_their_layer_only_and_padding_nothing(backend):
    kv, (q, k, v) = make_arrays(backend)
    _, written = run(backend, ROWS, kv, (q, k, v))
    table = np.asarray(make_inputs(ROWS).page_table)
    keys, values = (part[:, :NUM_PAGES] for part in pages_of(written))
    wanted_keys, wanted_values = (part[:, :NUM_PAGES] for part in pages_of(kv))
    for row, (start, _) in enumerate(ROWS):
        for position, token in enumerate(tokens_of(row), start):
            place = (1, table[row, position // PAGE_SIZE], position % PAGE_SIZE)
            wanted_keys[place], wanted_values[place] = k[token], v[token]
    np.testing.assert_array_equal(keys, wanted_keys)
    np.testing.assert_array_equal(values, wanted_values)


def test_a_cache_of_fewer_bits_holds_what_it_can_and_answers_by_that(backend):
    fp8 = jnp.float8_e4m3fn
    kv, (q, k, v) = make_arrays(backend)
    kv = tuple(part.astype(fp8) for part in kv)
    got, _ = run(backend, ROWS, kv, (q, k, v))
    wide = tuple(part.astype(np.float32) for part in kv)
    rounded = (q, k.astype(fp8).astype(np.float32), v.astype(fp8).astype(np.float32))
    wanted, _ = run(backend, ROWS, wide, rounded)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)

    k[0], v[0], v[0, 0, 0] = 1e4, -1e4, np.nan
    _, written = run(backend, ROWS, kv, (q, k, v))
    page = int(make_inputs(ROWS).page_table[0, ROWS[0][0] // PAGE_SIZE])
    keys, values = (part[1, page, ROWS[0][0] % PAGE_SIZE] for part in pages_of(written))
    assert np.all(keys.astype(np.float32) == 448)
    assert values.astype(np.float32).ravel().tolist() == [0, *[-448] * 7]
