import numpy as np
import pytest
from jserve_sched.request_grid import (
    LatencyPoints,
    decode_points,
    prefill_points,
    request_grid,
)

from fakes import make_request
from jserve_sched import features
from jserve_sched.bucket_strategies import Continuous
from jserve_sched.buckets import BucketTable
from jserve_sched.plan import Row
from step_costs import Curve

TABLES = (
    BucketTable((2, 4, 8), (0, 1, 2, 4), block_tokens=4),
    BucketTable((3,), (0, 5), block_tokens=4),
    BucketTable((1, 3, 8), (0, 1, 2, 6, 8), block_tokens=4, max_tokens=33),
    BucketTable((2, 5, 6), (0, 2, 3, 9), block_tokens=4, max_tokens=39),
    Continuous().table(max_num_seqs=4, max_num_batched_tokens=64, block_tokens=1),
)


def grid_of(table: BucketTable, *, num_kv_tokens: int = 4096):
    return request_grid(
        table,
        page_size=8,
        num_kv_tokens=num_kv_tokens,
        max_num_batched_tokens=table.max_rows + table.max_blocks * table.block_tokens,
    )


@pytest.mark.parametrize("table", TABLES)
def test_every_step_has_a_compiled_shape(table: BucketTable) -> None:
    shapes = {(one.num_rows, one.num_blocks) for one in table.buckets}
    columns = [features.NUM_ROWS, features.NUM_BLOCKS]
    asked = {(int(b), int(nb)) for b, nb in grid_of(table).matrix[:, columns]}
    assert asked <= shapes
    assert {nb for _, nb in asked} > {0}


@pytest.mark.parametrize("table", TABLES)
def test_the_steps_of_a_prefill_compute_its_tokens_once(table: BucketTable) -> None:
    grid = grid_of(table)
    matrix = grid.matrix[: grid.num_prefill_steps]
    tokens = np.add.reduceat(matrix[:, features.PREFILL_TOKENS], grid.first_step)
    assert tokens.tolist() == (grid.prefill_batch * grid.prefill_length).tolist()
    # A position attends to itself and all before it, in whole chunks.
    twice = 2 * matrix[:, features.PREFILL_WORK] - matrix[:, features.CHUNK_SQUARES]
    work = np.add.reduceat(twice, grid.first_step)
    assert work.tolist() == (grid.prefill_batch * grid.prefill_length**2).tolist()


def test_a_prompt_that_is_cut_goes_on_in_the_next_step() -> None:
    table = TABLES[0]  # at most four blocks of four tokens
    grid = grid_of(table)
    index = np.flatnonzero((grid.prefill_batch == 2) & (grid.prefill_length == 32))[0]
    first = grid.first_step[index]
    request = make_request(32, 1)
    wanted = [(0, 16), (16, 16), (0, 16), (16, 16)]
    for step, (start, count) in enumerate(wanted):
        row = features.step_features(
            (), (Row(request, start, count, samples=False),), table.fit(0, 4), 8
        )
        assert grid.matrix[first + step].tolist() == row.tolist()


def test_short_prompts_share_a_step() -> None:
    table = BucketTable((2, 4), (0, 4, 8), block_tokens=16)
    grid = grid_of(table)
    index = np.flatnonzero((grid.prefill_batch == 4) & (grid.prefill_length == 16))[0]
    row = grid.matrix[grid.first_step[index]]
    chunks = [Row(make_request(16, 1), 0, 16, samples=True) for _ in range(4)]
    assert row.tolist() == (
        features.step_features((), chunks, table.fit(0, 4), 8).tolist()
    )


def test_decode_steps_are_those_of_equal_rows() -> None:
    table = TABLES[0]
    grid = grid_of(table)
    decodes = grid.matrix[grid.num_prefill_steps :]
    chosen = decodes[
        (decodes[:, features.NUM_DECODES] == 8)
        & (decodes[:, features.DECODE_CONTEXT] == 8 * 16)
    ]
    rows = [Row(make_request(16, 2), 16, 1, samples=True) for _ in range(8)]
    wanted = features.step_features(rows, (), table.fit(8, 0), 8)
    assert chosen.tolist() == [wanted.tolist()]


def test_no_batch_is_larger_than_the_pool() -> None:
    grid = grid_of(TABLES[0], num_kv_tokens=64)
    assert np.max(grid.prefill_batch * grid.prefill_length) == 64
    assert np.max(grid.matrix[:, features.DECODE_CONTEXT]) == 64


def test_a_prefill_costs_all_its_steps() -> None:
    prefill, decode = grid_of(TABLES[0]).priced_by(Curve(lambda tokens: 1.0 + tokens))
    one = (prefill.batch == 2) & (prefill.length == 32)
    assert prefill.duration_s[one].tolist() == [4 * 1.0 + 64]
    assert set(decode.duration_s.tolist()) == {1.0}


def test_an_answer_of_nothing_counts_as_some_time() -> None:
    for points in grid_of(TABLES[0]).priced_by(Curve(lambda tokens: tokens * 0.0)):
        assert 0 < np.max(points.duration_s) < 1e-3


def rows_of(*chunks: tuple[int, int], decodes: tuple[int, ...] = ()) -> np.ndarray:
    """Features of a step of (start, tokens) chunks and decodes after contexts."""
    return features.step_features(
        [Row(make_request(4, 2), start, 1, samples=True) for start in decodes],
        [Row(make_request(4, 2), *chunk, samples=True) for chunk in chunks],
        TABLES[0].fit(8, 4),
        8,
    )


def test_measured_steps_that_are_whole_requests_steps_are_told_apart() -> None:
    matrix = np.stack(
        [
            rows_of((0, 6), (0, 6)),  # two equal prompts
            rows_of((0, 6), (0, 5)),  # unequal
            rows_of((8, 6)),  # goes on with a prompt
            rows_of((0, 6), decodes=(9,)),  # mixed
            rows_of(decodes=(9, 12, 15)),
        ]
    )
    seconds = np.arange(1.0, 6.0)
    prefill, decode = prefill_points(matrix, seconds), decode_points(matrix, seconds)
    assert (prefill.batch, prefill.length, prefill.duration_s) == ([2], [6], [1])
    assert (decode.batch, decode.length, decode.duration_s) == ([3], [12], [5])
    with pytest.raises(ValueError, match="no step is a whole prefill"):
        prefill_points(matrix[1:], seconds[1:])
    with pytest.raises(ValueError, match="no step has decodes only"):
        decode_points(matrix[:-1], seconds[:-1])


@pytest.mark.parametrize(
    ("seconds", "message"),
    [([], "no point"), ([0.0], "no time above 0"), ([np.nan], "no time above 0")],
)
def test_points_without_a_time_are_refused(seconds: list[float], message: str) -> None:
    size = np.ones(len(seconds))
    with pytest.raises(ValueError, match=message):
        LatencyPoints(batch=size, length=size, duration_s=np.array(seconds))
    with pytest.raises(ValueError, match="shapes"):
        LatencyPoints(batch=size, length=np.ones(3), duration_s=np.array(seconds))
