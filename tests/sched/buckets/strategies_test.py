import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jserve_sched.buckets.strategies import (
    FROM_FILE,
    SIMULATED_STRATEGIES,
    STRATEGIES,
    BucketStrategy,
    Explicit,
    make_strategy,
)
from jserve_sched.buckets.table import Bucket, BucketTable


def table_of(strategy: BucketStrategy, num_rows: int, num_blocks: int) -> BucketTable:
    """Returns the table for limits of `num_rows` and, beside them, `num_blocks`."""
    return strategy.table(
        max_num_seqs=num_rows,
        max_num_batched_tokens=num_rows + num_blocks * 4 + 3,
        block_tokens=4,
    )


@pytest.mark.parametrize(
    ("spec", "limits", "row_edges", "block_edges"),
    [
        ("pow2", (24, 12), (1, 2, 4, 8, 16, 24), (0, 1, 2, 4, 8, 12)),
        ("linear:block_gap=3", (20, 9), (1, 8, 16, 20), (0, 1, 3, 6, 9)),
    ],
)
def test_edges_follow_the_rule(spec, limits, row_edges, block_edges) -> None:
    table = table_of(make_strategy(spec), *limits)
    assert (table.row_edges, table.block_edges) == (row_edges, block_edges)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.sampled_from([*STRATEGIES, "linear:row_gap=1"]),
    st.integers(1, 70),
    st.integers(1, 130),
)
def test_the_limits_are_the_last_edges(
    spec: str, num_rows: int, num_blocks: int
) -> None:
    table = table_of(make_strategy(spec), num_rows, num_blocks)
    assert (table.max_rows, table.max_blocks) == (num_rows, num_blocks)
    with pytest.raises(ValueError, match="no room for a prefill block"):
        make_strategy(spec).table(
            max_num_seqs=num_rows, max_num_batched_tokens=num_rows + 3, block_tokens=4
        )


@pytest.mark.parametrize(
    ("rows", "blocks", "num_seqs", "message"),
    [
        ((4,), (0, 4), 8, "max_num_seqs=8"),
        ((4,), (0, 9), 4, "block edge 9"),
        ((4,), (0, 4), 109, "no room for a prefill block"),
        ((0, 4), (0, 1), 4, "row_edges must begin at 1"),
    ],
)
def test_explicit_edges_are_held_against_the_limits(
    rows, blocks, num_seqs, message
) -> None:
    with pytest.raises(ValueError, match=message):
        Explicit(row_edges=rows, block_edges=blocks).table(
            max_num_seqs=num_seqs, max_num_batched_tokens=140, block_tokens=32
        )


def test_explicit_blocks_may_need_empty_rows() -> None:
    table = Explicit(row_edges=(8, 64), block_edges=(0, 1, 4)).table(
        max_num_seqs=64, max_num_batched_tokens=140, block_tokens=32
    )
    assert table.max_tokens == 140
    assert Bucket(8, 4) in table.buckets
    assert Bucket(64, 4) not in table.buckets


def test_continuous_shapes_are_never_padded() -> None:
    strategy = make_strategy("none", SIMULATED_STRATEGIES)
    table = strategy.table(max_num_seqs=4, max_num_batched_tokens=12, block_tokens=32)
    assert table.fit(0, 3) == Bucket(0, 3, 1)
    assert table.fit(3, 8).num_tokens == 11
    assert (table.max_rows, table.max_blocks) == (4, 12)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pow3", "'pow3' is unknown; known: .*'linear', 'pow2'"),
        ("none", "bucket strategy 'none' is unknown"),
        ("pow2:gap=2", "'pow2' has no option 'gap=2'"),
        ("linear:row_gap=0", "row_gap=0 is below 1"),
        ("linear:block_gap=0.5", "linear:block_gap=0.5 is not a number"),
        *((name, f"'{name}' needs a bucket file") for name in FROM_FILE),
    ],
)
def test_wrong_specs_are_refused_by_name(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_strategy(spec)
