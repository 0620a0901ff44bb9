from collections.abc import Callable

import numpy as np
import pytest

from jserve_sched.steps import features
from jserve_sched.steps.features import NUM_FEATURES
from jserve_sched.timing.linear import LinearModel, LinearPredictor, fit_linear
from jserve_sched.timing.predictor import StepSample
from tests.fake_predictors import flat_model
from tests.fakes import make_features

DECODE_COLUMNS = [features.NUM_DECODES, features.DECODE_CONTEXT]
PREFILL_COLUMNS = [
    *(features.PREFILL_WORK, features.CHUNK_SQUARES),
    *(features.PREFILL_TOKENS, features.LARGEST_CHUNK),
]
# bias, x1 ... x7 of each scenario: a decode costs its context, a prefill its work.
TRUE = np.array(
    [
        [5e-3, 0, 0, 2e-7, 1e-4, 0, 0, 0],
        [8e-3, 3e-8, 1e-8, 0, 0, 4e-5, 0, 1e-6],
        [9e-3, 2e-8, 0, 1e-7, 2e-4, 5e-5, 0, 0],
    ]
)


def random_steps(num_steps: int, seed: int = 0) -> np.ndarray:
    """Features `[N, F]`: in turn a decode, a prefill and a mixed step."""
    rows = np.random.default_rng(seed).uniform(1, 1000, (num_steps, NUM_FEATURES))
    rows[np.ix_(np.arange(num_steps) % 3 == 0, PREFILL_COLUMNS)] = 0.0
    rows[np.ix_(np.arange(num_steps) % 3 == 1, DECODE_COLUMNS)] = 0.0
    rows[0::3, features.CACHED_TOKENS] = rows[0::3, features.DECODE_CONTEXT]
    return rows


def true_s(matrix: np.ndarray) -> np.ndarray:
    chosen = TRUE[features.scenarios(matrix)]
    return chosen[:, 0] + np.sum(chosen[:, 1:] * matrix[:, :7], axis=1)


def test_it_recovers_a_linear_device_scenario_by_scenario() -> None:
    matrix = random_steps(600)
    model = fit_linear(matrix, true_s(matrix))
    assert model.has_expert.all()
    held_out = random_steps(90, seed=1)
    assert model.predict(held_out) == pytest.approx(true_s(held_out), rel=1e-6)


def test_squared_errors_are_divided_by_the_time() -> None:
    """Equal steps of 1 s and 9 s: the mean weighted by 1 / time."""
    matrix = make_features(100, NUM_DECODES=1.0)
    duration_s = np.where(np.arange(100) < 50, 1.0, 9.0)
    model = fit_linear(matrix, duration_s)
    assert model.predict(matrix[:1])[0] == pytest.approx(1.8)


def test_a_scenario_seen_too_seldom_uses_the_global_model() -> None:
    matrix = random_steps(90)
    matrix = matrix[features.scenarios(matrix) != features.MIXED]
    model = fit_linear(matrix, true_s(matrix), min_expert_samples=30)
    assert model.has_expert.tolist() == [True, True, False]
    assert not fit_linear(matrix, true_s(matrix)).has_expert.any()
    model.coefficients[:] = 0.0
    model.coefficients[:, 0] = 0.1, 0.2, 0.3, 0.4
    assert model.predict(random_steps(3)).tolist() == [0.2, 0.3, 0.1]


def test_coefficients_are_never_negative_and_collinear_columns_harmless() -> None:
    matrix = random_steps(300)
    decodes = matrix[features.scenarios(matrix) == features.PURE_DECODE]
    assert np.array_equal(decodes[:, 2], decodes[:, 4]), "x3 equals x5"
    noisy_s = true_s(decodes) * np.random.default_rng(0).lognormal(0, 0.1, len(decodes))
    model = fit_linear(decodes, noisy_s, min_expert_samples=1)
    assert model.coefficients.min() >= 0.0
    assert model.coefficients[1, 3] + model.coefficients[1, 5] < 1e-6
    assert model.predict(decodes) == pytest.approx(true_s(decodes), rel=0.15)


def feed(predictor: LinearPredictor, matrix: np.ndarray, factor: float = 1.0) -> None:
    for row, duration_s in zip(matrix, true_s(matrix).tolist(), strict=True):
        predictor.update(StepSample(row, factor * duration_s))


def refitted(
    model: LinearModel, *fed: np.ndarray, anchors: np.ndarray | None = None
) -> LinearPredictor:
    """Returns a predictor that was refitted to all that it was fed."""
    num_samples = sum(map(len, fed))
    predictor = LinearPredictor(model, anchors=anchors, refit_every=num_samples)
    for matrix in fed:
        feed(predictor, matrix)
    assert predictor.num_refits == 1
    return predictor


def test_a_solver_that_gives_up_leaves_the_model(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def give_up(*arguments: object) -> None:
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr("scipy.optimize.nnls", give_up)
    predictor = LinearPredictor(flat_model(1.0), refit_every=30)
    matrix = random_steps(30)
    feed(predictor, matrix)
    assert "stays as it is: a fit to 30 steps failed: Maximum" in caplog.text
    assert predictor.num_refits == 0
    assert predictor.predict(matrix).tolist() == [1.0] * 30


def test_it_stores_and_submits_a_refit_when_it_is_due() -> None:
    matrix = random_steps(600)
    due: list[Callable[[], None]] = []
    predictor = LinearPredictor(flat_model(1.0), refit_every=300, submit=due.append)
    feed(predictor, matrix[:299])
    assert not due
    feed(predictor, matrix[299:599])
    assert predictor.predict(matrix).tolist() == [1.0] * 600
    (refit,) = due
    refit()
    assert predictor.num_refits == 1
    assert predictor.predict(matrix) == pytest.approx(true_s(matrix), rel=1e-6)


def test_old_samples_are_forgotten_but_no_scenario_and_no_anchor() -> None:
    matrix = random_steps(3072)  # all that the memory holds
    predictor = LinearPredictor(flat_model(1.0), refit_every=2 * len(matrix))
    feed(predictor, matrix)
    feed(predictor, matrix, factor=2.0)
    assert predictor.predict(matrix) == pytest.approx(2.0 * true_s(matrix), rel=1e-6)

    scenario = features.scenarios(matrix)
    decodes = matrix[scenario == features.PURE_DECODE]
    prefills = matrix[scenario == features.PURE_PREFILL][:300]
    busy = refitted(flat_model(1.0), prefills, *[decodes] * 4)
    assert busy.predict(prefills) == pytest.approx(true_s(prefills), rel=1e-6)

    mixed = scenario == features.MIXED
    anchors = np.column_stack((matrix, true_s(matrix)))[mixed]
    anchored = refitted(flat_model(1.0), matrix[~mixed], anchors=anchors)
    assert anchored.predict(matrix[mixed]) == pytest.approx(true_s(matrix[mixed]))
