"""Times of whole requests: the form, and its fit to steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jserve_sched.buckets.strategies import Continuous
from jserve_sched.buckets.table import BucketTable
from jserve_sched.steps import features
from jserve_sched.timing.request_latency import (
    Bilinear,
    LatencyPoints,
    RequestLatency,
    fit_bilinear,
    priced_points,
)
from tests.step_costs import Curve

PREFILL = Bilinear(both=1e-4, batch=2e-4, length=3e-5, base=0.01)
DECODE = Bilinear(both=2e-7, batch=5e-5, length=1e-7, base=0.015)
LATENCY = RequestLatency(prefill=PREFILL, decode=DECODE)
TABLE = BucketTable((2, 8), (0, 4, 16), block_tokens=8)
SMALL = BucketTable((2, 4, 8), (0, 1, 2, 4), block_tokens=4)

coefficients = st.floats(0.0, 1e-2)
models = st.builds(
    Bilinear, both=coefficients, batch=coefficients, length=coefficients,
    base=st.floats(1e-4, 1e-1),
)  # fmt: skip


@given(
    model=models,
    batch=st.integers(1, 64),
    prompt_tokens=st.integers(1, 4000),
    output_tokens=st.integers(1, 300),
)
@settings(derandomize=True, max_examples=60)
def test_the_closed_form_is_the_sum_of_the_steps(
    model: Bilinear, batch: int, prompt_tokens: int, output_tokens: int
) -> None:
    latency = RequestLatency(prefill=PREFILL, decode=model)
    # The first token comes from the prefill; the first decode reads the prompt.
    context = prompt_tokens + np.arange(output_tokens - 1)
    summed_s = float(np.sum(model.of(np.array(batch), context)))
    arguments = [np.array(one) for one in (batch, prompt_tokens, output_tokens)]
    assert latency.decode_s(*arguments) == pytest.approx(summed_s, rel=1e-9)
    whole_s = float(PREFILL.of(*arguments[:2])) + summed_s
    assert latency.exec_s(*arguments) == pytest.approx(whole_s, rel=1e-9)


@given(model=models)
@settings(derandomize=True, max_examples=40, deadline=None)
def test_a_fit_finds_the_form(model: Bilinear) -> None:
    grid = np.meshgrid([1.0, 2, 4, 8], [16.0, 64, 256, 1024])
    batch, length = (one.ravel() for one in grid)
    duration_s = model.of(batch, length)
    found = fit_bilinear(LatencyPoints(batch, length, duration_s))
    assert found.of(batch, length) == pytest.approx(duration_s, rel=1e-6)


def test_short_steps_count_as_much_as_long_ones() -> None:
    # A quadratic cannot be fitted: the errors must be shared out, not all be the short.
    length = np.geomspace(16, 4096, 9)
    points = LatencyPoints(np.ones(9), length, 0.01 + 1e-8 * length**2)
    found_s = fit_bilinear(points).of(points.batch, points.length)
    assert np.max(np.abs(found_s / points.duration_s - 1)[:5]) < 0.2


def grid_of(
    table: BucketTable, *, num_kv_tokens: int = 4096
) -> tuple[np.ndarray, LatencyPoints, LatencyPoints]:
    """Features of the steps, and both kinds of points."""
    asked: list[np.ndarray] = []

    def seconds(tokens: np.ndarray) -> np.ndarray:
        return 0.02 + tokens * 1e-4

    model = Curve(seconds, asked=asked)
    prefill, decode = priced_points(
        model,
        table,
        page_size=8,
        num_kv_tokens=num_kv_tokens,
        max_num_batched_tokens=table.max_rows + table.max_blocks * table.block_tokens,
    )
    return asked[0], prefill, decode


@pytest.mark.parametrize(
    "table",
    [
        SMALL,
        BucketTable((3,), (0, 5), block_tokens=4),
        BucketTable((1, 3, 8), (0, 1, 2, 6, 8), block_tokens=4, max_tokens=33),
        Continuous().table(max_num_seqs=4, max_num_batched_tokens=64, block_tokens=1),
    ],
)
def test_prefills_are_cut_into_compiled_steps(table: BucketTable) -> None:
    matrix, prefill, _ = grid_of(table)
    known = {(one.num_rows, one.num_blocks) for one in table.buckets}
    columns = [features.NUM_ROWS, features.NUM_BLOCKS]
    assert {(int(b), int(nb)) for b, nb in matrix[:, columns]} <= known
    assert np.sum(matrix[:, features.PREFILL_TOKENS]) == np.sum(
        prefill.batch * prefill.length
    )
    # A position attends to itself and all before it, in whole chunks.
    twice = 2 * matrix[:, features.PREFILL_WORK] - matrix[:, features.CHUNK_SQUARES]
    assert np.sum(twice) == np.sum(prefill.batch * prefill.length**2)
