import json

import numpy as np
import pytest

from jserve_sched.buckets.table import BucketTable
from jserve_sched.steps import features
from jserve_sched.timing.predictor import StepSample
from jserve_sched.timing.table import TablePredictor
from tests.fakes import make_features

TABLE = BucketTable((2, 8), (0, 4, 16))


def true_s(rows: float, blocks: float, decode_pages: int, block_pages: int) -> float:
    """A made-up device: affine in rows, blocks and the pages that are read."""
    return 1e-3 + 1e-4 * rows + 1e-3 * blocks + 1e-5 * decode_pages + 2e-5 * block_pages


def step(rows: float, blocks: float, decode_pages: float, block_pages: float):
    pages = {"DECODE_PAGES": decode_pages, "BLOCK_PAGES": block_pages}
    return make_features(NUM_ROWS=rows, NUM_BLOCKS=blocks, **pages)[0]


def predict_s(predictor: TablePredictor, *shape: float) -> float:
    return float(predictor.predict(step(*shape)[None])[0])


def samples() -> list[StepSample]:
    return [
        StepSample(
            step(rows, blocks, rows * decode_pages, blocks * block_pages),
            true_s(rows, blocks, rows * decode_pages, blocks * block_pages),
        )
        for rows in (2, 8)
        for blocks in (0, 4, 16)
        for decode_pages, block_pages in ((1, 1), (9, 1), (1, 9))
    ]


def fitted() -> TablePredictor:
    predictor = TablePredictor(TABLE)
    predictor.fit(samples())
    return predictor


def test_it_returns_what_was_timed_and_interpolates_between() -> None:
    predictor = TablePredictor(TABLE)
    broken = [one._replace(duration_s=float("nan")) for one in samples()]
    predictor.fit([*broken, *samples()])
    matrix = np.stack([one.features for one in samples()])
    expected_s = [one.duration_s for one in samples()]
    assert predictor.predict(matrix) == pytest.approx(expected_s, rel=1e-6)
    between = predict_s(predictor, 5, 10, 5, 3)
    assert between == pytest.approx(true_s(5, 10, 5, 3), rel=0.1)


def test_the_timed_pass_round_trips_and_is_tied_to_its_table() -> None:
    data = json.loads(json.dumps(fitted().to_json()))
    again = TablePredictor(TABLE)
    assert again.load_json(data)
    matrix = step(8, 4, 9, 9)[None]
    assert again.predict(matrix) == pytest.approx(fitted().predict(matrix))
    other = TablePredictor(BucketTable((4,), (0, 4)))
    before = other.to_json()
    assert not other.load_json(data)
    assert not again.load_json(data | {"per_block_page_s": [[0.5]]})
    assert other.to_json() == before and again.to_json() == data


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e-3, 0.0])
def test_saved_times_that_are_not_durations_are_refused(bad: float) -> None:
    data = fitted().to_json()
    data["no_pages_s"][1][1] = bad
    again = TablePredictor(TABLE)
    with pytest.raises(ValueError, match="a step time is"):
        again.load_json(json.loads(json.dumps(data)))
    assert np.isfinite(again.predict(step(8, 4, 9, 9)[None])).all()


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_buckets_not_timed_yet_do_not_change_the_timed_ones(scale: float) -> None:
    """Whatever the machine's speed, a guess never overrides a measurement."""
    covering = [
        one._replace(duration_s=scale * one.duration_s)
        for one in samples()
        if one.features[features.NUM_ROWS] == 8
        and one.features[features.NUM_BLOCKS] in (0, 16)
    ]
    predictor = TablePredictor(TABLE)
    predictor.fit(covering)
    for rows, blocks in ((8, 0), (8, 16)):
        found = predict_s(predictor, rows, blocks, 1, 1 if blocks else 0)
        wanted = scale * true_s(rows, blocks, 1, 1 if blocks else 0)
        assert found == pytest.approx(wanted, rel=0.01)
    small_s, large_s = (predict_s(predictor, 8, n, 1, n and 1) for n in (0, 16))
    assert small_s <= predict_s(predictor, 8, 4, 1, 1) <= large_s
    # Two rows beside blocks run in the bucket of eight.
    few_s, eight_s = (predict_s(predictor, rows, 16, 1, 9) for rows in (2, 8))
    assert few_s == pytest.approx(eight_s)


def test_more_work_never_takes_less_time() -> None:
    rng = np.random.default_rng(3)
    predictor = TablePredictor(TABLE)
    predictor.fit(
        one._replace(duration_s=one.duration_s * float(rng.lognormal(0.0, 1.0)))
        for one in samples()
    )
    edges = (range(1, 9), range(17), range(1, 33), range(1, 33))
    for dim, values in enumerate(edges):
        for _ in range(20):
            others = [float(rng.choice(list(one))) for one in edges]
            if dim < 2:  # the cost of a page may differ between buckets
                others[2:] = 0.0, 0.0
            rows = [[*others[:dim], value, *others[dim + 1 :]] for value in values]
            found = predictor.predict(np.stack([step(*one) for one in rows]))
            assert np.all(np.diff(found) >= -1e-12)
