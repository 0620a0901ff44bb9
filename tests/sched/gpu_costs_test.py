import numpy as np
import pytest

from jserve_sched import features
from jserve_sched.gpu_costs import ChunkRule, Grid, KernelTimes, TableCost, kernel_times

EDGES = np.array([1.0, 2.0, 4.0, 8.0])


def flat_grid(dims: int, value: float) -> Grid:
    return Grid([EDGES] * dims, np.full([4] * dims, value))


def toy_cost(**changes: object) -> TableCost:
    """Attention of a kind costs its edges' sum; tokens cost 0.01 each."""

    def added(dims: int) -> Grid:
        return Grid([EDGES] * dims, sum(np.meshgrid(*[EDGES] * dims, indexing="ij")))

    settings = {
        "name": "toy",
        "times": KernelTimes(
            tokens=Grid([EDGES], EDGES * 0.01),
            sequences=flat_grid(1, 0.5),
            decode=added(2),
            prefill=added(2),
            mixed=added(4),
        ),
        "num_kv_tokens": 1024,
        "page_size": 16,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
    }
    return TableCost(**(settings | changes))


def step(*, decodes: int = 0, context: int = 0, chunks: tuple = (), rows: int = -1):
    """Features of decodes of one context and of chunks (cached, tokens)."""
    tokens = [c for _, c in chunks]
    row = np.zeros(features.NUM_FEATURES)
    row[features.PREFILL_WORK] = sum(c * (u + c) for u, c in chunks)
    row[features.CHUNK_SQUARES] = sum(c * c for c in tokens)
    row[features.CACHED_TOKENS] = sum(u for u, _ in chunks) + decodes * context
    row[features.NUM_DECODES] = decodes
    row[features.DECODE_CONTEXT] = decodes * context
    row[features.PREFILL_TOKENS] = sum(tokens)
    row[features.LARGEST_CHUNK] = max(tokens, default=0)
    row[features.NUM_ROWS] = decodes if rows < 0 else rows
    row[features.NUM_BLOCKS] = sum(tokens)
    row[features.DECODE_PAGES] = -(-(context + 1) // 16) if decodes else 0
    return row[None]


def test_grid_is_exact_for_what_is_straight() -> None:
    x, y = np.meshgrid(EDGES, EDGES, indexing="ij")
    grid = Grid([EDGES, EDGES], 3 * x + 5 * y + 2 * x * y)
    at_x, at_y = np.random.default_rng(0).uniform(1, 8, (2, 100))
    expected = 3 * at_x + 5 * at_y + 2 * at_x * at_y
    on_axes = Grid([EDGES, EDGES], 3 * x + 5 * y).at(at_x, at_y)
    np.testing.assert_allclose(on_axes, 3 * at_x + 5 * at_y)
    np.testing.assert_allclose(grid.at(at_x, at_y), expected)


def test_grid_beyond_its_edges() -> None:
    rising = Grid([EDGES], np.array([1.0, 1.0, 2.0, 6.0]))
    # Below: the first value. Beyond: the slope from 4 to 8, one a unit.
    places = np.array([0.0, 0.5, 8.0, 12.0, 40.0])
    np.testing.assert_allclose(rising.at(places), [1, 1, 6, 10, 38])
    falling = Grid([EDGES], np.array([1.0, 5.0, 4.0, 3.0]))
    np.testing.assert_allclose(falling.at(np.array([16.0, 99.0])), [3, 3])


def test_grid_reaches_from_half_of_the_axis() -> None:
    # The last two points are close and noisy; the slope beyond is from 4 on.
    grid = Grid([np.array([1.0, 4.0, 7.9, 8.0])], np.array([1.0, 4.0, 7.0, 8.0]))
    np.testing.assert_allclose(grid.at(np.array([16.0])), [16])


def test_grid_prices_a_place_alike_in_any_company() -> None:
    rng = np.random.default_rng(1)
    grid = Grid([EDGES] * 4, rng.uniform(1, 2, (4, 4, 4, 4)))
    places = rng.uniform(0, 20, (4, 50))
    alone = [grid.at(*places[:, [i]])[0] for i in range(50)]
    assert grid.at(*places).tolist() == alone


@pytest.mark.parametrize(
    ("axis", "values", "message"),
    [
        (EDGES, np.ones(3), "do not fit"),
        (EDGES[::-1], np.ones(4), "must ascend"),
        (EDGES[:1], np.ones(1), "must ascend"),
        (EDGES, np.array([1, np.nan, 1, 1]), "missing"),
        (EDGES, np.array([1, -1.0, 1, 1]), "below 0"),
    ],
)
def test_grid_refuses(axis: np.ndarray, values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid([axis], values)


def test_step_is_the_sum_of_its_kernels() -> None:
    cost = toy_cost()
    decode = cost.step_s(step(decodes=2, context=4), 1)
    np.testing.assert_allclose(decode, [0.02 + 0.5 + 2 + 4])
    prefill = cost.step_s(step(chunks=((2, 4),)), 1)
    np.testing.assert_allclose(prefill, [0.04 + 0.5 + 4 + 2])
    mixed = cost.step_s(step(decodes=2, context=8, chunks=((2, 4),)), 1)
    np.testing.assert_allclose(mixed, [0.06 + 0.5 + 4 + 2 + 2 + 8])


def test_kinds_are_priced_together_as_alone() -> None:
    cost = toy_cost(skew=0.25)
    rows = [
        step(decodes=2, context=4),
        step(chunks=((2, 4),)),
        step(decodes=3, context=5, chunks=((2, 4), (0, 1))),
        step(decodes=1, context=6),
    ]
    together = cost.step_s(np.concatenate(rows), 1)
    assert together.tolist() == [float(cost.step_s(row, 1)[0]) for row in rows]


def test_padding_costs_tokens_but_no_attention() -> None:
    cost = toy_cost()
    exact, padded = (
        cost.step_s(step(decodes=2, context=4, rows=rows), 1)[0] for rows in (2, 8)
    )
    np.testing.assert_allclose(padded - exact, 0.06)
    blocks = step(decodes=2, context=4, chunks=((2, 4),))
    np.testing.assert_allclose(
        cost.step_s(blocks, 2)[0] - cost.step_s(blocks, 1)[0], 0.04
    )
    # A step without decodes is not charged for the rows of its bucket.
    assert cost.step_s(step(chunks=((2, 4),), rows=8), 1) == cost.step_s(
        step(chunks=((2, 4),)), 1
    )


@pytest.mark.parametrize("rule", ChunkRule)
def test_chunk_rules_agree_on_one_chunk(rule: ChunkRule) -> None:
    one = step(chunks=((2, 4),))
    assert toy_cost(chunk_rule=rule).step_s(one, 1) == toy_cost().step_s(one, 1)


@pytest.mark.parametrize(
    ("rule", "chunk", "cached"),
    [
        (ChunkRule.SQUARES, 5.0, (3 * 2 + 4 * 1) / 5),
        (ChunkRule.SUMMED_CACHE, 5.0, 3.0),
        (ChunkRule.TOTAL, 7.0, (3 * 2 + 4 * 1) / 7),
    ],
)
def test_chunk_rules_on_two(rule: ChunkRule, chunk: float, cached: float) -> None:
    seconds = toy_cost(chunk_rule=rule).step_s(step(chunks=((2, 3), (1, 4))), 1)
    tokens_and_head_s = 0.07 + 0.5
    np.testing.assert_allclose(seconds, tokens_and_head_s + chunk + cached)


def test_skew_leads_towards_the_longest_context() -> None:
    uneven = step(decodes=2, context=4)  # the longest ends in its first page of 16
    even_s, half_s, longest_s = (
        toy_cost(skew=skew).step_s(uneven, 1)[0] for skew in (0.0, 0.5, 1.0)
    )
    np.testing.assert_allclose(longest_s - even_s, 16 - 4)
    np.testing.assert_allclose(half_s, (even_s + longest_s) / 2)
    with pytest.raises(ValueError, match=r"skew=1.5 is not in 0..1"):
        toy_cost(skew=1.5)


def profile() -> dict:
    cells = [(c, u, 0, 0) for c in (1, 2) for u in (0, 1)]
    cells += [(0, 0, d, k) for d in (1, 2) for k in (1, 2)]
    cells += [
        (c, u, d, k) for c in (1, 2) for u in (0, 1) for d in (1, 2) for k in (1, 2)
    ]
    points = np.array([(1, 10.0), (2, 20.0)])
    return {
        "attention": np.array([(*cell, 100.0) for cell in cells]),
        "dense": dict.fromkeys(("mlp", "layernorm", "embedding"), points),
        "per_sequence": {"sampler": points},
        "num_layers": 4,
    }


def test_kernel_times_count_calls_and_layers() -> None:
    times = kernel_times(**profile())
    two = np.array([2.0])
    # Per layer one mlp and two norms, and one embedding a step.
    np.testing.assert_allclose(times.tokens.at(two), [(4 + 8 + 1) * 20e-6])
    np.testing.assert_allclose(times.sequences.at(two), [20e-6])
    np.testing.assert_allclose(times.decode.at(two, two), [4 * 100e-6])
    np.testing.assert_allclose(times.mixed.at(two, two, two, two), [4 * 100e-6])


def test_more_tokens_never_take_less_time() -> None:
    dipping = profile()
    points = np.array([(1, 10.0), (2, 8.0), (3, 12.0)])
    dipping["dense"] = dict.fromkeys(dipping["dense"], points)
    tokens = kernel_times(**dipping).tokens
    np.testing.assert_allclose(
        tokens.at(np.array([1.0, 2.0, 3.0])), [130e-6, 130e-6, 156e-6]
    )


def test_kernel_times_refuse_an_incomplete_profile() -> None:
    holed = profile()
    holed["attention"] = holed["attention"][:-1]
    with pytest.raises(ValueError, match="missing"):
        kernel_times(**holed)
    uneven = profile()
    uneven["dense"] = uneven["dense"] | {"mlp": np.array([(1, 1.0), (3, 1.0)])}
    with pytest.raises(ValueError, match="'layernorm' was measured at other points"):
        kernel_times(**uneven)
