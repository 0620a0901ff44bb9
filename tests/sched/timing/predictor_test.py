"""Properties of every predictor, and what replaces a bad answer."""

import math

import numpy as np
import pytest

from jserve_sched.buckets.table import BucketTable
from jserve_sched.steps import features
from jserve_sched.timing.linear import LinearPredictor
from jserve_sched.timing.mlp import MlpPredictor
from jserve_sched.timing.predictor import (
    MAX_STEP_S,
    Predictor,
    RatioQuantile,
    SafePredictor,
    StepSample,
)
from jserve_sched.timing.table import TablePredictor
from tests.fake_predictors import flat_model, flat_weights
from tests.fakes import make_features


def decode_step(num_decodes: int = 4) -> np.ndarray:
    context = {"CACHED_TOKENS": 400, "DECODE_CONTEXT": 400, "DECODE_PAGES": 4}
    return make_features(NUM_DECODES=num_decodes, NUM_ROWS=8, **context)[0]


def every_predictor() -> list[Predictor]:
    table = TablePredictor(BucketTable((2, 8), (0, 4)), max_pages_per_row=8)
    model = flat_model(0.01, per_decode_s=0.001)
    linear = LinearPredictor(model, refit_every=64)
    return [table, linear, MlpPredictor(flat_weights(model))]


class Constant:
    """Answers the same, always."""

    def __init__(self, *values: float):
        self.values = np.array(values)
        self.num_updates = 0

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        return np.resize(self.values, len(matrix))

    predict_upper = predict

    def update(self, sample: StepSample) -> None:
        self.num_updates += 1


BAD_S = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e9)


@pytest.mark.parametrize("bad", BAD_S)
@pytest.mark.parametrize("ask", ["predict", "predict_upper"])
def test_a_bad_answer_is_replaced_and_counted(bad: float, ask: str) -> None:
    safe = SafePredictor(Constant(0.5, bad, 0.25), Constant(0.125))
    found = getattr(safe, ask)(np.zeros((3, features.NUM_FEATURES)))
    assert found.tolist() == [0.5, 0.125, 0.25]
    assert safe.num_replaced == 1


def test_a_good_answer_passes_and_both_learn() -> None:
    inner, fallback = Constant(0.5, MAX_STEP_S), Constant(0.125)
    safe = SafePredictor(inner, fallback)
    assert safe.predict(np.zeros((2, features.NUM_FEATURES))).tolist() == [
        0.5,
        MAX_STEP_S,
    ]
    safe.update(StepSample(decode_step(), 0.01))
    assert (inner.num_updates, fallback.num_updates) == (1, 1)
    assert safe.num_replaced == 0


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


def test_a_rare_absurd_duration_moves_no_predictor_far() -> None:
    """A stopped process, or a clock that jumped: one step in a hundred."""
    for predictor in every_predictor():
        for count in range(1, 801):
            step = decode_step(1 + count % 8)
            true_s = 0.01 + 0.001 * (1 + count % 8)
            wrong_s = 300.0 if count % 200 else 1e-7
            predictor.update(StepSample(step, true_s if count % 100 else wrong_s))
        found_s = float(predictor.predict(decode_step(4)[None])[0])
        assert found_s == pytest.approx(0.014, rel=0.35), predictor


def test_every_upper_is_above_and_covers_95_percent() -> None:
    for predictor in every_predictor():
        rng = np.random.default_rng(0)
        step = decode_step()
        for noise in rng.lognormal(0.0, 0.2, 3000):
            predictor.update(StepSample(step, 0.014 * float(noise)))
        upper_s = float(predictor.predict_upper(step[None])[0])
        assert upper_s >= float(predictor.predict(step[None])[0])
        measured_s = 0.014 * rng.lognormal(0.0, 0.2, 4000)
        assert 0.92 < float(np.mean(measured_s <= upper_s)) < 0.98, predictor


def test_the_ratio_is_the_percentile_of_its_scenario() -> None:
    known = np.zeros((3, features.NUM_FEATURES))
    known[[features.PURE_DECODE, features.MIXED], features.NUM_DECODES] = 1
    known[[features.PURE_PREFILL, features.MIXED], features.PREFILL_TOKENS] = 1
    ratio = RatioQuantile()

    def learn(scenario: int, *ratios: float) -> list[float]:
        for one in ratios:
            sample = StepSample(known[scenario], 0.5 * one)
            ratio.learn(sample, Constant(0.5).predict)
        return ratio.scale(np.ones(3), known).tolist()

    assert learn(features.PURE_DECODE) == [1.1, 1.1, 1.1]
    # 96 of the 100 are taken in, by 16; too few of the others.
    assert learn(features.PURE_DECODE, *np.linspace(0.51, 1.5, 100)) == [1.42, 1.1, 1.1]
    learn(features.PURE_DECODE, *[0.2] * 12)
    assert learn(features.MIXED, *[3.0] * 32)[2] == 1.1
    assert learn(features.MIXED, *[3.0] * 16)[2] == 3.0
    assert learn(features.PURE_DECODE, *[0.2] * 640)[0] == 1.0, "bounded below"
    assert learn(features.MIXED, *[1e6] * 640)[2] == 4.0, "bounded above"
