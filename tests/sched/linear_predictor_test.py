import threading

import numpy as np
import pytest
from scipy.optimize import nnls

from jserve_sched import features
from jserve_sched.features import NUM_FEATURES
from jserve_sched.linear_predictor import (
    LinearModel,
    LinearPredictor,
    fit_linear,
    non_negative_least_squares,
)
from jserve_sched.predictor import StepSample

# bias, x1 ... x7 of each scenario: a decode costs its context, a prefill its work.
TRUE = np.array(
    [
        [5e-3, 0, 0, 2e-7, 1e-4, 0, 0, 0],
        [8e-3, 3e-8, 1e-8, 0, 0, 4e-5, 0, 1e-6],
        [9e-3, 2e-8, 0, 1e-7, 2e-4, 5e-5, 0, 0],
    ]
)


def random_steps(num_steps: int, seed: int = 0) -> np.ndarray:
    """Features `[N, F]` of all three scenarios."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((num_steps, NUM_FEATURES))
    for index, row in enumerate(rows):
        kind = index % 3
        if kind != features.PURE_PREFILL:
            row[features.NUM_DECODES] = rng.integers(1, 33)
            row[features.DECODE_CONTEXT] = row[features.NUM_DECODES] * rng.integers(
                1, 4000
            )
        row[features.CACHED_TOKENS] = row[features.DECODE_CONTEXT]
        if kind != features.PURE_DECODE:
            chunks = rng.integers(2, 512, rng.integers(1, 5)).astype(float)
            cached = rng.integers(0, 4000, len(chunks)).astype(float)
            row[features.PREFILL_WORK] = np.sum(chunks * (cached + chunks))
            row[features.CHUNK_SQUARES] = np.sum(chunks**2)
            row[features.CACHED_TOKENS] += np.sum(cached)
            row[features.PREFILL_TOKENS] = np.sum(chunks)
            row[features.LARGEST_CHUNK] = np.max(chunks)
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


def test_a_scenario_without_expert_uses_the_global_model() -> None:
    coefficients = np.zeros((4, 8))
    coefficients[:, 0] = 0.1, 0.2, 0.3, 0.4
    model = LinearModel(
        coefficients=coefficients, has_expert=np.array([True, False, True])
    )
    assert model.predict(random_steps(3)).tolist() == [0.2, 0.1, 0.4]


def test_squared_errors_are_divided_by_the_time_or_count_alike() -> None:
    """Equal steps of 1 s and 9 s: the mean, or the mean weighted by 1 / time."""
    matrix = np.zeros((100, NUM_FEATURES))
    matrix[:, features.NUM_DECODES] = 1.0
    duration_s = np.where(np.arange(100) < 50, 1.0, 9.0)
    for is_relative, mean_s in ((False, 5.0), (True, 1.8)):
        model = fit_linear(matrix, duration_s, is_relative=is_relative)
        assert model.predict(matrix[:1])[0] == pytest.approx(mean_s)


def test_experts_need_enough_samples() -> None:
    matrix = random_steps(90)
    matrix = matrix[features.scenarios(matrix) != features.MIXED]
    model = fit_linear(matrix, true_s(matrix), min_expert_samples=30)
    assert model.has_expert.tolist() == [True, True, False]
    model = fit_linear(matrix, true_s(matrix), min_expert_samples=31)
    assert not model.has_expert.any()


def test_coefficients_are_never_negative_and_collinear_columns_harmless() -> None:
    matrix = random_steps(300)
    decodes = matrix[features.scenarios(matrix) == features.PURE_DECODE]
    assert np.array_equal(decodes[:, 2], decodes[:, 4]), "x3 equals x5"
    noisy_s = true_s(decodes) * np.random.default_rng(0).lognormal(0, 0.1, len(decodes))
    model = fit_linear(decodes, noisy_s, min_expert_samples=1)
    assert model.coefficients.min() >= 0.0
    assert model.coefficients[1, 3] + model.coefficients[1, 5] < 1e-6
    assert model.predict(decodes) == pytest.approx(true_s(decodes), rel=0.15)


@pytest.mark.parametrize("seed", range(40))
def test_the_least_squares_are_as_good_as_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(30, 8)) * 10.0 ** rng.integers(-3, 6, 8)
    if seed % 2:
        matrix[:, 3] = matrix[:, 5]  # collinear
        matrix[:, 6] = 0.0
    target = rng.normal(size=30)
    found = non_negative_least_squares(matrix, target)
    _, best = nnls(matrix, target)
    assert found.min() >= 0.0
    assert np.linalg.norm(matrix @ found - target) <= best * (1 + 1e-6)


@pytest.mark.parametrize(
    ("matrix", "duration_s", "message"),
    [
        (np.zeros((0, NUM_FEATURES)), np.zeros(0), "at least 1"),
        (np.zeros((2, NUM_FEATURES)), np.ones(3), "2 rows of features and 3"),
        (np.zeros((2, NUM_FEATURES)), np.array([1.0, np.nan]), "not finite"),
        (np.full((1, NUM_FEATURES), np.inf), np.ones(1), "not finite"),
        (np.zeros((1, NUM_FEATURES)), np.zeros(1), "is 0.0 s, not above 0"),
    ],
)
def test_what_cannot_be_fitted_is_named(
    matrix: np.ndarray, duration_s: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_linear(matrix, duration_s)


def test_models_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"coefficients have shape \(3, 8\)"):
        LinearModel(coefficients=np.zeros((3, 8)), has_expert=np.zeros(3, bool))
    with pytest.raises(ValueError, match=r"has_expert has shape \(4,\)"):
        LinearModel(coefficients=np.zeros((4, 8)), has_expert=np.zeros(4, bool))


def flat_model(bias_s: float) -> LinearModel:
    coefficients = np.zeros((4, 8))
    coefficients[:, 0] = bias_s
    return LinearModel(coefficients=coefficients, has_expert=np.zeros(3, bool))


def feed(predictor: LinearPredictor, matrix: np.ndarray, factor: float = 1.0) -> None:
    for row, duration_s in zip(matrix, true_s(matrix).tolist(), strict=True):
        predictor.update(StepSample(row, factor * duration_s))


def test_it_stores_until_its_owner_refits_and_swaps() -> None:
    matrix = random_steps(300)
    predictor = LinearPredictor(flat_model(1.0), refit_every=300)
    feed(predictor, matrix[:299])
    assert not predictor.is_refit_due
    feed(predictor, matrix[299:])
    assert predictor.is_refit_due
    assert predictor.predict(matrix).tolist() == [1.0] * 300
    model = predictor.refit()
    assert model is not None and not predictor.is_refit_due
    assert predictor.predict(matrix).tolist() == [1.0] * 300, "not swapped yet"
    predictor.swap(model)
    assert predictor.num_refits == 1
    assert predictor.predict(matrix) == pytest.approx(true_s(matrix), rel=1e-6)


def test_in_a_simulation_it_refits_by_itself() -> None:
    matrix = random_steps(300)
    predictor = LinearPredictor(flat_model(1.0), refit_every=100, refits_inline=True)
    feed(predictor, matrix)
    assert predictor.num_refits == 3
    assert predictor.predict(matrix) == pytest.approx(true_s(matrix), rel=1e-6)


def test_too_few_samples_make_no_model() -> None:
    predictor = LinearPredictor(flat_model(1.0), min_expert_samples=20)
    feed(predictor, random_steps(19))
    assert predictor.refit() is None


def test_many_decodes_do_not_push_the_last_prefills_out() -> None:
    matrix = random_steps(900)
    scenario = features.scenarios(matrix)
    decodes = matrix[scenario == features.PURE_DECODE]
    predictor = LinearPredictor(flat_model(1.0), memory=900, min_expert_samples=50)
    feed(predictor, matrix[scenario == features.PURE_PREFILL])
    for _ in range(10):
        feed(predictor, decodes)
    model = predictor.refit()
    assert model is not None
    assert model.has_expert.tolist() == [True, True, False]


def test_old_samples_are_forgotten_but_not_the_anchors() -> None:
    matrix = random_steps(300)
    predictor = LinearPredictor(flat_model(1.0), memory=300)
    feed(predictor, matrix)
    feed(predictor, matrix, factor=2.0)
    model = predictor.refit()
    assert model is not None
    assert model.predict(matrix) == pytest.approx(2.0 * true_s(matrix), rel=1e-6)

    mixed = features.scenarios(matrix) == features.MIXED
    anchors = np.column_stack((matrix, true_s(matrix)))[mixed]
    anchored = LinearPredictor(flat_model(1.0), anchors=anchors)
    feed(anchored, matrix[~mixed])
    model = anchored.refit()
    assert model is not None and model.has_expert.all()
    assert model.predict(matrix[mixed]) == pytest.approx(true_s(matrix[mixed]))


def test_anchors_do_not_hold_a_slower_machine_back() -> None:
    matrix = random_steps(600)
    start_s = true_s(matrix)
    predictor = LinearPredictor(
        fit_linear(matrix, start_s), anchors=np.column_stack((matrix, start_s))
    )
    feed(predictor, random_steps(600, seed=1), factor=3.0)
    model = predictor.refit()
    assert model is not None
    assert model.predict(matrix) == pytest.approx(3.0 * start_s, rel=1e-6)


def test_an_expert_stays_when_its_scenario_is_no_longer_remembered() -> None:
    matrix = random_steps(600)
    scenario = features.scenarios(matrix)
    predictor = LinearPredictor(fit_linear(matrix, true_s(matrix)))
    feed(predictor, matrix[scenario == features.PURE_DECODE])
    model = predictor.refit()
    assert model is not None
    assert model.predict(matrix) == pytest.approx(true_s(matrix), rel=1e-6)


def test_an_update_never_waits_for_a_refit() -> None:
    """The memory's lock is held by someone else: the sample is let go at once."""
    predictor = LinearPredictor(flat_model(1.0), min_expert_samples=1)
    row = random_steps(1)
    with predictor._lock:
        feeder = threading.Thread(target=feed, args=(predictor, row))
        feeder.start()
        feeder.join(timeout=10.0)
        assert not feeder.is_alive()
    assert predictor.refit() is None, "nothing was stored"
