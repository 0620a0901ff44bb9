import json

import numpy as np
import pytest

from jserve_sched.buckets import BucketTable
from jserve_sched.features import (
    BLOCK_PAGES,
    DECODE_PAGES,
    NUM_BLOCKS,
    NUM_FEATURES,
    NUM_ROWS,
)
from jserve_sched.predictor import StepSample
from jserve_sched.table_predictor import TablePredictor

TABLE = BucketTable((2, 8), (0, 4, 16))


def true_s(rows: float, blocks: float, decode_pages: int, block_pages: int) -> float:
    """A made-up device: affine in rows, blocks and the pages they loop over."""
    return (
        1e-3
        + 1e-4 * rows
        + 1e-3 * blocks
        + 1e-5 * rows * max(decode_pages - 1, 0)
        + 2e-4 * blocks * max(block_pages - 1, 0)
    )


def step(rows: float, blocks: float, decode_pages: float, block_pages: float):
    row = np.zeros(NUM_FEATURES)
    row[[NUM_ROWS, NUM_BLOCKS]] = rows, blocks
    row[[DECODE_PAGES, BLOCK_PAGES]] = decode_pages, block_pages
    return row


def predict_s(predictor: TablePredictor, *shape: float) -> float:
    return float(predictor.predict(step(*shape)[None])[0])


def samples() -> list[StepSample]:
    return [
        StepSample(
            step(rows, blocks, decode_pages, block_pages if blocks else 0),
            true_s(rows, blocks, decode_pages, block_pages),
        )
        for rows in (2, 8)
        for blocks in (0, 4, 16)
        for decode_pages, block_pages in ((1, 1), (9, 1), (1, 9))
    ]


def fitted() -> TablePredictor:
    predictor = TablePredictor(TABLE, max_pages_per_row=32)
    predictor.fit(samples())
    return predictor


def test_it_returns_what_was_timed() -> None:
    predictor = fitted()
    for one in samples():
        predicted_s = predictor.predict(one.features[None])[0]
        assert predicted_s == pytest.approx(one.duration_s, rel=1e-6)


def test_it_interpolates_between_shapes_and_contexts() -> None:
    predictor = fitted()
    between = predict_s(predictor, 5, 10, 5, 3)
    assert between == pytest.approx(true_s(5, 10, 5, 3), rel=0.1)


def test_more_work_never_takes_less_time() -> None:
    predictor = TablePredictor(TABLE, max_pages_per_row=32)
    noisy = samples()
    rng = np.random.default_rng(0)
    predictor.fit(
        [
            one._replace(duration_s=one.duration_s * float(rng.uniform(0.5, 2)))
            for one in noisy
        ]
    )
    for column, values in enumerate(
        ((0, 2, 5, 8), (0, 2, 4, 16), *[(0, 1, 9, 32)] * 2)
    ):
        matrix = np.tile(step(4, 4, 4, 4), (len(values), 1))
        matrix[:, (NUM_ROWS, NUM_BLOCKS, DECODE_PAGES, BLOCK_PAGES)[column]] = values
        assert np.all(np.diff(predictor.predict(matrix)) >= 0)


def test_updates_follow_a_device_that_slowed_down() -> None:
    predictor = fitted()
    slow = StepSample(step(8, 0, 9, 0), 2 * true_s(8, 0, 9, 0))
    for _ in range(128):
        predictor.update(slow)
    predicted_s = predict_s(predictor, 8, 0, 9, 0)
    assert predicted_s == pytest.approx(slow.duration_s, rel=0.1)


def test_one_outlier_moves_a_known_cell_little() -> None:
    predictor = fitted()
    usual = samples()[0]
    for _ in range(63):
        predictor.update(usual)
    outlier = StepSample(step(2, 0, 1, 0), 10.0)
    predictor.update(outlier)
    assert predict_s(predictor, 2, 0, 1, 0) < 1.05 * usual.duration_s


def test_the_timed_pass_round_trips_and_is_tied_to_its_table() -> None:
    data = json.loads(json.dumps(fitted().to_json()))
    again = TablePredictor(TABLE, max_pages_per_row=32)
    assert again.load_json(data)
    matrix = step(8, 4, 9, 9)[None]
    assert again.predict(matrix) == pytest.approx(fitted().predict(matrix))
    other = TablePredictor(BucketTable((4,), (0, 4)), max_pages_per_row=32)
    assert not other.load_json(data)
