"""Properties of every predictor, calibrated, and of what follows the machine."""

import math

import numpy as np
import pytest

from jserve_sched.buckets.table import BucketTable
from jserve_sched.steps import features
from jserve_sched.timing.best import BestPredictor
from jserve_sched.timing.calibrated import CalibratedPredictor
from jserve_sched.timing.linear import LinearPredictor
from jserve_sched.timing.mlp import MlpPredictor
from jserve_sched.timing.predictor import MAX_STEP_S, StepModel, StepSample
from jserve_sched.timing.table import TablePredictor
from tests.fake_predictors import Constant, flat_model, flat_weights
from tests.fakes import make_features


def decode_step(num_decodes: int = 4) -> np.ndarray:
    context = {"CACHED_TOKENS": 400, "DECODE_CONTEXT": 400, "DECODE_PAGES": 4}
    return make_features(NUM_DECODES=num_decodes, NUM_ROWS=8, **context)[0]


def every_predictor() -> list[BestPredictor]:
    table = TablePredictor(BucketTable((2, 8), (0, 4)))
    model = flat_model(0.01, per_decode_s=0.001)
    linear = LinearPredictor(model, refit_every=64)
    bare: list[StepModel] = [table, linear, MlpPredictor(flat_weights(0.014))]
    return [BestPredictor(CalibratedPredictor(one, "it")) for one in bare]


BAD_S = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e9)


@pytest.mark.parametrize("bad", BAD_S)
def test_a_measurement_that_is_not_a_duration_teaches_nothing(bad: float) -> None:
    broken = decode_step()
    broken[features.CACHED_TOKENS] = math.nan
    matrix = np.stack([decode_step(count) for count in (1, 4, 8)])
    for predictor, fresh in zip(every_predictor(), every_predictor(), strict=True):
        for _ in range(300):
            predictor.update(StepSample(decode_step(), bad))
            predictor.update(StepSample(broken, 0.01))
        assert np.array_equal(predictor.predict(matrix), fresh.predict(matrix))
        assert np.array_equal(
            predictor.predict_upper(matrix), fresh.predict_upper(matrix)
        )


def steps_at(
    predictor: BestPredictor, speed: float, count: int, *, seed: int = 0
) -> float:
    """Share of steps within their p95, on a machine that takes `speed` times as long.

    The last fourth of the steps count.
    """
    noise = np.random.default_rng(seed).lognormal(0.0, 0.1, count)
    covered = []
    for number, one in enumerate(noise.tolist()):
        step = decode_step(1 + number % 8)
        upper_s = float(predictor.predict_upper(step[None])[0])
        covered.append(0.014 * speed * one <= upper_s)
        predictor.update(StepSample(step, 0.014 * speed * one))
    return float(np.mean(covered[-count // 4 :]))


def test_a_neighbour_comes_and_goes() -> None:
    """A minute has more than a thousand steps of 30 ms."""
    for predictor in every_predictor():
        steps_at(predictor, 1.0, 400)
        for speed in (1.7, 1.0):
            covered = steps_at(predictor, speed, 800, seed=1)
            assert 0.9 <= covered <= 0.98, predictor
            found_s = float(predictor.predict(decode_step()[None])[0])
            assert found_s == pytest.approx(0.014 * speed, rel=0.1), predictor


def test_a_stall_makes_no_plan_timid() -> None:
    for predictor in every_predictor():
        steps_at(predictor, 1.0, 400)
        matrix = np.stack([decode_step(count) for count in (1, 4, 8)])
        before_s = predictor.predict_upper(matrix)
        predictor.update(StepSample(decode_step(), 0.2))
        steps_at(predictor, 1.0, 31)
        assert predictor.predict_upper(matrix) == pytest.approx(before_s, rel=0.12)


def test_a_factor_is_of_its_kind_and_program() -> None:
    one = BestPredictor(CalibratedPredictor(Constant(0.01), "it"))
    large = decode_step()
    large[features.NUM_ROWS] = 64
    mixed = decode_step()
    mixed[[features.PREFILL_TOKENS, features.NUM_BLOCKS]] = 32, 1
    for _ in range(64):
        one.update(StepSample(decode_step(), 0.02))
        one.update(StepSample(large, 0.03))
    found = one.predict(np.stack((decode_step(), large, mixed)))
    assert found == pytest.approx([0.02, 0.03, 0.01], rel=0.05)
    assert one.predict_upper(mixed[None])[0] < MAX_STEP_S
