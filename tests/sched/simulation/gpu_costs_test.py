from typing import Any

import numpy as np
import pytest

from jserve_sched.simulation.gpu_costs import Grid, TableCost, kernel_times
from jserve_sched.steps import features

EDGES = np.array([1.0, 2.0, 4.0, 8.0])


def toy_cost(skew: float = 0.0) -> TableCost:
    """Attention of a kind costs its edges' sum; tokens cost 0.01 each."""

    def added(dims: int) -> Grid:
        points = np.meshgrid(*[EDGES] * dims, indexing="ij")
        return Grid([EDGES] * dims, np.sum(points, axis=0))

    return TableCost(
        name="toy",
        tokens=Grid([EDGES], EDGES * 0.01),
        sequences=Grid([EDGES], np.full(4, 0.5)),
        decode=added(2),
        prefill=added(2),
        mixed=added(4),
        num_kv_tokens=1024,
        page_size=16,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        skew=skew,
    )


def step(*, decodes: int = 0, context: int = 0, chunks: tuple = (), rows: int = -1):
    """Features of decodes of one context and of chunks (cached, tokens)."""
    tokens = [c for _, c in chunks]
    row = np.zeros(features.NUM_FEATURES)
    row[features.PREFILL_WORK] = sum(c * (u + c) for u, c in chunks)
    row[features.CHUNK_SQUARES] = sum(c * c for c in tokens)
    row[features.NUM_DECODES] = decodes
    row[features.DECODE_CONTEXT] = decodes * context
    row[features.PREFILL_TOKENS] = sum(tokens)
    row[features.LARGEST_CHUNK] = max(tokens, default=0)
    row[features.NUM_ROWS] = decodes if rows < 0 else rows
    row[features.NUM_BLOCKS] = sum(tokens)
    row[features.LONGEST_DECODE] = -(-(context + 1) // 16) if decodes else 0
    return row[None]


@pytest.mark.parametrize(
    ("axis", "values", "places", "expected"),
    [
        # Below: the first value. Beyond: the slope from 4 to 8, one a unit.
        (EDGES, (1, 1, 2, 6), (0.0, 0.5, 8.0, 12.0, 40.0), (1, 1, 6, 10, 38)),
        (EDGES, (1, 5, 4, 3), (16.0, 99.0), (3, 3)),
        # The last two points are close and noisy; the slope beyond is from 4 on.
        (np.array([1, 4, 7.9, 8]), (1, 4, 7, 8), (16.0,), (16,)),
    ],
)
def test_grid_beyond_its_edges(
    axis: np.ndarray, values: tuple, places: tuple, expected: tuple
) -> None:
    grid = Grid([axis], np.array(values, np.float64))
    np.testing.assert_allclose(grid.at(np.array(places)), expected)


def test_a_step_is_the_sum_of_its_kernels() -> None:
    cases = [
        (step(decodes=2, context=4), 0.02 + 0.5 + 2 + 4),
        (step(chunks=((2, 4),)), 0.04 + 0.5 + 4 + 2),
        # A step without decodes is not charged for the rows of its bucket.
        (step(chunks=((2, 4),), rows=8), 0.04 + 0.5 + 4 + 2),
        (step(decodes=2, context=8, chunks=((2, 4),)), 0.06 + 0.5 + 4 + 2 + 2 + 8),
        # Padded rows cost tokens, but no attention.
        (step(decodes=2, context=4, rows=8), 0.08 + 0.5 + 2 + 4),
        # Two chunks count as one of 5 tokens after (3 * 2 + 4 * 1) / 5 cached ones.
        (step(chunks=((2, 3), (1, 4))), 0.07 + 0.5 + 5 + 2),
    ]
    together = toy_cost().step_s(np.concatenate([row for row, _ in cases]), 1)
    np.testing.assert_allclose(together, [seconds for _, seconds in cases])
    alone = [float(toy_cost().step_s(row, 1)[0]) for row, _ in cases]
    assert together.tolist() == alone


def test_skew_leads_towards_the_longest_context() -> None:
    uneven = step(decodes=2, context=4)  # the longest ends in its first page of 16
    even_s, half_s, longest_s = (
        toy_cost(skew).step_s(uneven, 1)[0] for skew in (0.0, 0.5, 1.0)
    )
    np.testing.assert_allclose(longest_s - even_s, 16 - 4)
    np.testing.assert_allclose(half_s, (even_s + longest_s) / 2)


def test_a_profile_is_summed_over_layers_and_must_be_complete() -> None:
    two = (1, 2)
    cells = [(c, u, 0, 0) for c in two for u in (0, 1)]
    cells += [(0, 0, d, k) for d in two for k in two]
    cells += [(c, u, d, k) for c in two for u in (0, 1) for d in two for k in two]
    points = np.array([(1, 10.0), (2, 8.0), (3, 12.0)])
    profile: dict[str, Any] = {
        "attention": np.array([(*cell, 100.0) for cell in cells]),
        "dense": dict.fromkeys(("mlp", "layernorm", "embedding"), points),
        "per_sequence": {"sampler": np.array([(1, 10.0), (2, 20.0)])},
        "num_layers": 4,
    }
    # 4 + 8 + 1 calls; more tokens never take less time.
    found = kernel_times(**profile)["tokens"].at(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(found, [130e-6, 130e-6, 156e-6])
    with pytest.raises(ValueError, match="missing"):
        kernel_times(**profile | {"attention": profile["attention"][:-1]})
    profile["dense"]["embedding"] = points + np.array([1.0, 0.0])
    with pytest.raises(ValueError, match="'embedding' was measured at other points"):
        kernel_times(**profile)
