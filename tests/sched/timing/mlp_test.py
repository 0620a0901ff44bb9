import itertools
import math
from typing import Any

import numpy as np
import pytest

from jserve_sched.steps import features
from jserve_sched.timing.mlp import (
    MAX_LOG_INCREMENT,
    MAX_LOG_RESIDUAL,
    NUM_COSTS,
    NUM_INPUTS,
    MlpPredictor,
    MlpWeights,
    mlp_inputs,
    physics_s,
)


def some_steps(num_steps: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = rng.integers(1, 1000, (num_steps, features.NUM_FEATURES)).astype(float)
    matrix[::3, features.NUM_DECODES] = 0
    matrix[1::3, features.PREFILL_TOKENS] = 0
    return matrix


def some_weights(seed: int = 0, gain: float = 0.3, **fields: object) -> MlpWeights:
    rng = np.random.default_rng(seed)
    sizes = (NUM_INPUTS, 16, 8, 2)
    cost_s = rng.uniform(0, 1e-5, NUM_COSTS)
    steps = some_steps(500)
    inputs = mlp_inputs(steps, physics_s(cost_s, steps))
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
    scaled = (inputs - mean) / scale
    defaults: dict[str, Any] = {
        "cost_s": cost_s,
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
    sizes = row[
        [
            features.NUM_ROWS,
            features.NUM_BLOCKS,
            features.NUM_DECODES,
            features.DECODE_PAGES,
            features.BLOCK_PAGES,
        ]
    ].tolist()
    base_s = weights.cost_s[0] + sum(weights.cost_s[1 + k] * sizes[k] for k in range(5))
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
    assert predictor.quantiles(matrix)[1] == pytest.approx(expected[:, 1], rel=1e-9)


def test_the_residual_is_bounded_and_fades_outside_the_range() -> None:
    weights = some_weights(gain=50.0)  # absurd weights
    predictor = MlpPredictor(weights)
    near = some_steps(200)
    log_ratio = np.log(predictor.predict(near) / physics_s(weights.cost_s, near))
    assert np.abs(log_ratio).max() <= MAX_LOG_RESIDUAL + 1e-9
    assert np.abs(log_ratio).max() > 0.9, "the bound is reached"
    far = 1e12 * near
    log_ratio = np.log(predictor.predict(far) / physics_s(weights.cost_s, far))
    assert np.abs(log_ratio).max() < 0.1
    free = some_weights(cost_s=np.zeros(NUM_COSTS))
    assert np.all(MlpPredictor(free).predict(near) > 0)
