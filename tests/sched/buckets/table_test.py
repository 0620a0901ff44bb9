import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jserve_sched.buckets.table import Bucket, BucketTable, table_from_json


def test_fit_rounds_both_dimensions_up() -> None:
    table = BucketTable((2, 8), (0, 1, 4))
    assert table.fit(0, 0) == Bucket(2, 0)
    assert table.fit(3, 2) == Bucket(8, 4)
    assert table.fit(8, 4).num_tokens == 8 + 4 * 32


@pytest.mark.parametrize(("rows", "blocks"), [(9, 0), (0, 5), (-1, 0)])
def test_fit_names_what_is_too_large(rows: int, blocks: int) -> None:
    with pytest.raises(ValueError, match="exceeds the largest"):
        BucketTable((2, 8), (0, 1, 4)).fit(rows, blocks)


@pytest.mark.parametrize(
    ("rows", "blocks"), [((), (0, 1)), ((2, 2), (0, 1)), ((4, 2), (0, 1)), ((2,), (1,))]
)
def test_bad_edges_are_refused(rows: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="_edges must"):
        BucketTable(rows, blocks)


@pytest.mark.parametrize(
    ("max_tokens", "message"),
    [
        (11, "block edge 1 does not fit beside 8 rows: 12 tokens are over .*=11"),
        (17, "block edge 4 does not fit beside 2 rows: 18 tokens are over .*=17"),
    ],
)
def test_every_edge_is_in_a_pair(max_tokens: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BucketTable((2, 8), (0, 1, 2, 4), block_tokens=4, max_tokens=max_tokens)


def test_blocks_beside_rows_respect_the_lower_limit() -> None:
    table = BucketTable((2, 8), (0, 1, 2, 4), block_tokens=4, max_tokens=18)
    assert [table.block_edge_beside(rows, 99) for rows in (0, 2, 3, 8)] == [4, 4, 2, 2]
    assert [table.block_edge_beside(rows, 17) for rows in (0, 3)] == [2, 2]
    assert table.block_edge_beside(8, 9) == 0


edges = st.sets(st.integers(1, 12), min_size=1, max_size=5).map(sorted)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(edges, edges, st.integers(0, 40))
def test_buckets_are_what_steps_within_the_limits_round_up_to(
    rows: Sequence[int], blocks: Sequence[int], spare_tokens: int
) -> None:
    least = max(rows[-1] + 4 * blocks[0], rows[0] + 4 * blocks[-1])
    limit = least + spare_tokens
    table = BucketTable(tuple(rows), (0, *blocks), 4, limit)
    reached = {
        table.fit(num_decodes, num_blocks)
        for num_decodes in range(rows[-1] + 1)
        for num_blocks in range(table.block_edge_beside(num_decodes, limit) + 1)
        if num_decodes < rows[-1] or not num_blocks  # a prompt needs a slot
        if num_decodes or num_blocks
    }
    assert set(table.buckets) == reached
    assert table.num_programs == len(table.buckets)


def test_bucket_files_round_trip() -> None:
    for max_tokens in (None, 99):
        table = BucketTable((2, 8), (0, 3), 16, max_tokens)
        text = json.dumps(table.to_json())
        assert table_from_json(text) == table
        assert json.loads(text) == table.to_json()  # step times are matched by it
    text = '{"row_edges": [2], "block_edges": [0, 1], "fit": {"max_programs": 3}}'
    assert table_from_json(text) == BucketTable((2,), (0, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_edges": [2, 8.0]}, "8.0 is not an integer"),
        ({"row_edges": [True, 8]}, "True is not an integer"),
        ({"block_edges": [0, "4"]}, "'4' is not an integer"),
        ({"block_edges": "04"}, "'0' is not an integer"),
        ({"block_tokens": None}, "None is not an integer"),
        ({"max_tokens": "99"}, "'99' is not an integer"),
        ({"row_edges": 3}, "a bucket file is a JSON object with row_edges"),
    ],
)
def test_a_bucket_file_holds_integers(changes: dict[str, Any], message: str) -> None:
    row = BucketTable((2, 8), (0, 3), 16, 99).to_json() | changes
    with pytest.raises(ValueError, match=message):
        table_from_json(json.dumps(row))
    for text in ("{}", "[", "[]"):
        with pytest.raises(ValueError, match="a bucket file is a JSON object"):
            table_from_json(text)
