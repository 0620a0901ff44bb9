import itertools
import math
from typing import Any

import numpy as np
import pytest

from jserve_sched.steps import features
from jserve_sched.timing.linear import LinearModel
from jserve_sched.timing.mlp import (
    MAX_LOG_INCREMENT,
    MAX_LOG_RESIDUAL,
    NUM_INPUTS,
    MlpPredictor,
    MlpWeights,
    mlp_base_s,
    mlp_inputs,
)
from jserve_sched.timing.predictor import StepSample


def some_steps(num_steps: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = rng.integers(1, 1000, (num_steps, features.NUM_FEATURES)).astype(float)
    matrix[::3, features.NUM_DECODES] = 0
    matrix[1::3, features.PREFILL_TOKENS] = 0
    return matrix


def some_weights(seed: int = 0, gain: float = 0.3, **fields: object) -> MlpWeights:
    rng = np.random.default_rng(seed)
    sizes = (NUM_INPUTS, 16, 8, 2)
    linear = LinearModel(
        coefficients=rng.uniform(0, 1e-5, (4, 8)), has_expert=np.ones(3, bool)
    )
    steps = some_steps(500)
    inputs = mlp_inputs(steps, mlp_base_s(linear, steps))
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
    scaled = (inputs - mean) / scale
    defaults: dict[str, Any] = {
        "linear": linear,
        "mean": mean,
        "scale": scale,
        "low": scaled.min(axis=0),
        "high": scaled.max(axis=0),
        "layers": tuple(
            (gain * rng.normal(size=pair), 0.1 * rng.normal(size=pair[1]))
            for pair in itertools.pairwise(sizes)
        ),
    }
    return MlpWeights(**{**defaults, **fields})


def by_hand(weights: MlpWeights, row: np.ndarray) -> tuple[float, float]:
    """The median and the 95th percentile of one step, without arrays' help."""
    scenario = int(features.scenarios(row[None])[0])
    coefficients = weights.linear.coefficients[1 + scenario]
    base_s = coefficients[0] + sum(coefficients[1 + k] * row[k] for k in range(7))
    sizes = row[
        [
            features.NUM_ROWS,
            features.NUM_BLOCKS,
            features.DECODE_PAGES,
            features.BLOCK_PAGES,
        ]
    ].tolist()
    values = [math.log(1 + x) for x in sizes]
    values.append(math.log(base_s))
    outside = 0.0
    for k in range(NUM_INPUTS):
        scaled = (values[k] - weights.mean[k]) / weights.scale[k]
        values[k] = min(max(scaled, weights.low[k]), weights.high[k])
        outside = max(outside, abs(scaled - values[k]))
    for index, (kernel, bias) in enumerate(weights.layers):
        values = [
            sum(values[k] * kernel[k, h] for k in range(len(values))) + bias[h]
            for h in range(len(bias))
        ]
        if index < len(weights.layers) - 1:
            values = [max(value, 0.0) for value in values]
    residual = min(max(values[0], -MAX_LOG_RESIDUAL), MAX_LOG_RESIDUAL) / (1 + outside)
    increment = min(math.log(1 + math.exp(values[1])), MAX_LOG_INCREMENT)
    return base_s * math.exp(residual), base_s * math.exp(residual + increment)


def test_it_evaluates_as_by_hand_inside_and_outside_the_range() -> None:
    weights = some_weights()
    matrix = np.concatenate((some_steps(30, seed=1), 100.0 * some_steps(30, seed=2)))
    expected = np.array([by_hand(weights, row) for row in matrix])
    predictor = MlpPredictor(weights)
    assert predictor.predict(matrix) == pytest.approx(expected[:, 0], rel=1e-9)
    assert predictor.predict_upper(matrix) == pytest.approx(expected[:, 1], rel=1e-9)


def test_the_upper_is_never_below_the_median() -> None:
    matrix = some_steps(300)
    predictor = MlpPredictor(some_weights())
    before_s = predictor.predict_upper(matrix)
    assert np.all(before_s > predictor.predict(matrix))
    for row, median_s in zip(matrix, predictor.predict(matrix), strict=True):
        predictor.update(StepSample(row, 0.5 * float(median_s)))
    assert np.all(predictor.predict_upper(matrix) < before_s)
    assert np.all(predictor.predict_upper(matrix) >= predictor.predict(matrix))


def test_the_residual_is_bounded_and_fades_outside_the_range() -> None:
    weights = some_weights(gain=50.0)  # absurd weights
    predictor = MlpPredictor(weights)
    near = some_steps(200)
    log_ratio = np.log(predictor.predict(near) / mlp_base_s(weights.linear, near))
    assert np.abs(log_ratio).max() <= MAX_LOG_RESIDUAL + 1e-9
    assert np.abs(log_ratio).max() > 0.9, "the bound is reached"
    far = 1e12 * near
    log_ratio = np.log(predictor.predict(far) / mlp_base_s(weights.linear, far))
    assert np.abs(log_ratio).max() < 0.1
    zero = LinearModel(coefficients=np.zeros((4, 8)), has_expert=np.zeros(3, bool))
    assert np.all(MlpPredictor(some_weights(linear=zero)).predict(near) > 0)


def test_the_correction_follows_a_slower_machine_in_its_scenario_only() -> None:
    matrix = some_steps(600)
    predictor, fresh = MlpPredictor(some_weights()), MlpPredictor(some_weights())
    mixed = features.scenarios(matrix) == features.MIXED
    measured_s = 1.3 * fresh.predict(matrix)
    for row, duration_s in zip(matrix[mixed], measured_s[mixed], strict=True):
        predictor.update(StepSample(row, float(duration_s)))
    ratio = predictor.predict(matrix) / fresh.predict(matrix)
    assert ratio[mixed] == pytest.approx(1.3, rel=0.02)
    assert np.all(ratio[~mixed] == 1.0)
