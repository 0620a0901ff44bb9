"""The kernel for NVIDIA GPUs, interpreted with race detection, against NumPy.

`cp.async` cannot be interpreted: copies without TMA are synchronous here, so that
their waits are not tested.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jserve_models.attention import paged_mosaic
from jserve_models.attention.paged_mosaic import plgpu
from tests.models.attention import mosaic

NO_KERNEL = paged_mosaic.fault("bfloat16", 128, 128)
pytestmark = [
    pytest.mark.skipif(NO_KERNEL is not None, reason=f"the kernel {NO_KERNEL}"),
    pytest.mark.usefixtures("quick_compiler", "synchronous_cp_async"),
]
KV_HEADS, MAX_PAGES, SCALE = 2, 5, 0.11


@dataclasses.dataclass(frozen=True)
class Case:
    """Static sizes and options; `PAIRS` gives them in this order."""

    width: int
    group_size: int
    head_dim: int
    page_size: int
    num_splits: int
    window: int | None
    soft_cap: float | None
    has_sinks: bool
    dtype: str
    has_tma: bool


DECODE = Case(1, 4, 64, 32, 2, None, None, True, "bfloat16", True)
PREFILL = Case(4, 4, 64, 32, 1, 40, 1.5, False, "bfloat16", True)
# Every two values of two fields occur together in one of them.
PAIRS = [
    Case(3, 1, 64, 128, 2, 5, None, True, "bfloat16", False),
    Case(1, 1, 128, 256, 1, 64, 1.5, False, "float16", True),
    Case(20, 3, 256, 64, 3, 5, 1.5, False, "float16", False),
    Case(20, 8, 64, 32, 3, None, None, True, "float16", True),
    Case(1, 8, 256, 128, 2, 64, 1.5, True, "bfloat16", True),
    Case(3, 8, 128, 256, 1, None, None, False, "bfloat16", False),
    Case(1, 3, 64, 64, 1, 64, None, True, "bfloat16", True),
    Case(20, 3, 128, 32, 2, None, 1.5, True, "bfloat16", False),
    Case(3, 1, 256, 32, 3, 64, None, False, "float16", False),
    Case(3, 8, 128, 64, 2, 5, 1.5, False, "float16", True),
    Case(20, 3, 256, 128, 1, None, 1.5, False, "float16", False),
    Case(1, 3, 64, 32, 1, 5, 1.5, False, "bfloat16", False),
    Case(20, 1, 256, 256, 3, 5, None, True, "bfloat16", True),
    Case(1, 1, 256, 64, 3, None, 1.5, True, "float16", False),
    Case(3, 3, 64, 256, 2, None, 1.5, True, "float16", True),
    Case(20, 3, 128, 128, 3, 64, 1.5, True, "bfloat16", True),
]


@pytest.fixture
def synchronous_cp_async(monkeypatch):
    copy = plgpu.copy_gmem_to_smem

    def copy_now(source, target, barrier=None, **options):
        if barrier is None:
            target[...] = source[...]
        else:
            copy(source, target, barrier, **options)

    monkeypatch.setattr(plgpu, "copy_gmem_to_smem", copy_now)
    monkeypatch.setattr(plgpu, "wait_gmem_to_smem", lambda n: None)


def make(case, lens=None):
    """Returns random arrays; whatever no query may see is large or does not exist.

    By default the rows' keys end behind a page's border, at one, or there are none.
    """
    rng = np.random.default_rng(0)
    page_size, heads = case.page_size, KV_HEADS * case.group_size
    lens = [2 * page_size + 3, 0, page_size] if lens is None else lens
    num_pages = len(lens) * MAX_PAGES + 2
    q = rng.normal(size=(len(lens), case.width, heads, case.head_dim))
    pages = np.full((num_pages, page_size, 2 * KV_HEADS, case.head_dim), 1e4)
    table = rng.permutation(num_pages)[: len(lens) * MAX_PAGES].reshape(-1, MAX_PAGES)
    for row, num_keys in enumerate(lens):
        for key in range(num_keys):
            at = table[row, key // page_size], key % page_size
            pages[at] = rng.normal(size=pages.shape[2:])
        table[row, max(-(-num_keys // page_size), 1) :] = 10**6
    starts = np.maximum(np.array(lens) - case.width, 0)
    starts[0] += case.width > 1  # the last token is padding
    arrays = [x.astype(np.int32) for x in (starts, np.array(lens), table)]
    return [q.astype(case.dtype), pages.astype(case.dtype), *arrays]


def sinks_of(case):
    heads = KV_HEADS * case.group_size
    return np.linspace(-1, 2, heads, dtype=np.float32) if case.has_sinks else None


def attend(case, arrays):
    function = functools.partial(
        paged_mosaic.paged_attention,
        scale=SCALE,
        window=case.window,
        soft_cap=case.soft_cap,
        sinks=sinks_of(case),
        num_splits=case.num_splits,
        has_tma=case.has_tma,
    )
    with mosaic.interpreted():
        return np.asarray(jax.jit(function)(*arrays), np.float32)


def dense(case, q, pages, starts, lens, table):
    out, sinks = np.zeros(q.shape, np.float32), sinks_of(case)
    q, pages = q.astype(np.float32), pages.astype(np.float32)
    for row, token, head in np.ndindex(q.shape[:3]):
        end = min(starts[row] + token + 1, lens[row])
        begin = max(starts[row] + token + 1 - (case.window or 10**6), 0)
        if begin >= end:
            continue
        tokens = np.arange(begin, end)
        seen = pages[table[row, tokens // case.page_size], tokens % case.page_size]
        kv_head = head // case.group_size
        scores = seen[:, 2 * kv_head] @ q[row, token, head] * SCALE
        if case.soft_cap is not None:
            scores = case.soft_cap * np.tanh(scores / case.soft_cap)
        weights = np.exp(np.append(scores, [] if sinks is None else sinks[head]))
        answer = weights[: len(tokens)] @ seen[:, 2 * kv_head + 1]
        out[row, token, head] = answer / weights.sum()
    return out


def check(case):
    arrays = make(case)
    got = attend(case, arrays)
    np.testing.assert_allclose(got, dense(case, *arrays), rtol=0, atol=1e-2)


def test_equals_dense_softmax():
    check(DECODE)


@pytest.mark.aot
@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_equals_dense_softmax_with_every_pair_of_options(case):
    check(case)


@pytest.mark.aot
@pytest.mark.parametrize("case", [DECODE, PREFILL], ids=["decode", "prefill"])
def test_a_rows_bits_do_not_depend_on_its_neighbours(case):
    base = make(case, lens=[70, 40, 0])
    other = make(case, lens=[70, 0, 96])
    other[0][0], other[3][0], other[4][0] = base[0][0], base[3][0], base[4][0]
    other[1][base[4][0, :3]] = base[1][base[4][0, :3]]
    np.testing.assert_array_equal(attend(case, base)[0], attend(case, other)[0])


@pytest.mark.parametrize(
    "left_out", ["barrier_wait", pytest.param("commit_smem", marks=pytest.mark.aot)]
)
def test_a_wait_that_is_left_out_is_a_race(left_out, monkeypatch):
    monkeypatch.setattr(plgpu, left_out, lambda *_: None)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RACE DETECTED"):
        attend(DECODE, make(DECODE, lens=[160]))
