import json

import pytest

from jserve_sched.buckets import (
    Bucket,
    BucketTable,
    Continuous,
    Explicit,
    PowersOfTwo,
    table_from_json,
)


def test_fit_rounds_both_dimensions_up() -> None:
    table = BucketTable((2, 8), (0, 1, 4))
    assert table.fit(0, 0) == Bucket(2, 0)
    assert table.fit(3, 2) == Bucket(8, 4)
    assert table.fit(8, 4).num_tokens == 8 + 4 * 32


@pytest.mark.parametrize(("rows", "blocks"), [(9, 0), (0, 5), (-1, 0)])
def test_fit_names_what_is_too_large(rows: int, blocks: int) -> None:
    with pytest.raises(ValueError, match="exceeds the largest"):
        BucketTable((2, 8), (0, 1, 4)).fit(rows, blocks)


def test_largest_block_edge_rounds_down() -> None:
    table = BucketTable((2,), (0, 2, 6))
    assert [table.largest_block_edge(n) for n in (0, 1, 2, 5, 6, 99)] == [
        *(0, 0, 2, 2, 6, 6)
    ]


def test_buckets_come_largest_first() -> None:
    buckets = BucketTable((2, 4), (0, 1)).buckets
    assert [str(one) for one in buckets] == ["B4xNB1", "B4xNB0", "B2xNB1", "B2xNB0"]


def test_powers_of_two_reach_their_limits() -> None:
    table = PowersOfTwo().table(
        max_num_seqs=24, max_num_batched_tokens=430, block_tokens=32
    )
    assert table.row_edges == (2, 4, 8, 16, 24)
    assert table.block_edges == (0, 1, 2, 4, 8, 12)
    one = PowersOfTwo().table(
        max_num_seqs=1, max_num_batched_tokens=33, block_tokens=32
    )
    assert (one.row_edges, one.block_edges) == ((1,), (0, 1))


@pytest.mark.parametrize(
    ("rows", "blocks"), [((), (0, 1)), ((2, 2), (0, 1)), ((4, 2), (0, 1)), ((2,), (1,))]
)
def test_bad_edges_are_refused(rows: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="_edges must"):
        BucketTable(rows, blocks)


def test_explicit_checks_the_limits() -> None:
    limits = {"max_num_batched_tokens": 140, "block_tokens": 32}
    strategy = Explicit(row_edges=(4,), block_edges=(0, 4))
    assert strategy.table(max_num_seqs=4, **limits).max_blocks == 4
    with pytest.raises(ValueError, match="max_num_seqs=8"):
        strategy.table(max_num_seqs=8, **limits)
    with pytest.raises(ValueError, match="block edge 9"):
        Explicit(row_edges=(4,), block_edges=(0, 9)).table(max_num_seqs=4, **limits)
    with pytest.raises(ValueError, match="no room for a prefill block"):
        strategy.table(max_num_seqs=4, max_num_batched_tokens=31, block_tokens=32)


def test_bucket_files_round_trip() -> None:
    table = BucketTable((2, 8), (0, 3), 16)
    assert table_from_json(json.dumps(table.to_json())) == table
    for text in ("{}", "[", '{"row_edges": 3, "block_edges": [0]}'):
        with pytest.raises(ValueError, match="bucket file"):
            table_from_json(text)


def test_continuous_shapes_are_never_padded() -> None:
    table = Continuous().table(
        max_num_seqs=4, max_num_batched_tokens=12, block_tokens=32
    )
    assert table.fit(0, 3) == Bucket(0, 3, 1)
    assert table.fit(3, 8).num_tokens == 11
    assert (table.max_rows, table.max_blocks) == (4, 12)


def test_an_engine_has_no_shape_without_rows() -> None:
    with pytest.raises(ValueError, match="row_edges must begin at 1"):
        Explicit(row_edges=(0, 4), block_edges=(0, 1)).table(
            max_num_seqs=4, max_num_batched_tokens=64, block_tokens=32
        )
