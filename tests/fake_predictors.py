"""Step-time models with known predictions."""

import numpy as np

from jserve_sched.steps.features import NUM_DECODES
from jserve_sched.timing.linear import LinearModel
from jserve_sched.timing.mlp import NUM_COSTS, NUM_INPUTS, MlpWeights
from jserve_sched.timing.predictor import StepSample


def flat_model(step_s: float, *, per_decode_s: float = 0.0) -> LinearModel:
    """A model in which every step takes the same time, plus a time for each decode."""
    coefficients = np.zeros((4, 8))
    coefficients[:, 0] = step_s
    coefficients[:, 1 + NUM_DECODES] = per_decode_s
    return LinearModel(coefficients=coefficients, has_expert=np.zeros(3, bool))


def flat_weights(step_s: float, *, output: float = 0.0) -> MlpWeights:
    """A network of one layer whose outputs are constant, over a constant time."""
    return MlpWeights(
        cost_s=step_s * np.eye(NUM_COSTS)[0],
        mean=np.zeros(NUM_INPUTS),
        scale=np.ones(NUM_INPUTS),
        low=np.zeros(NUM_INPUTS),
        high=np.full(NUM_INPUTS, 100.0),
        layers=((np.zeros((NUM_INPUTS, 2)), np.full(2, output)),),
    )


class Constant:
    """Answers the same, always."""

    def __init__(self, *values: float):
        self.values = np.array(values)
        self.num_updates = 0

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        return np.resize(self.values, len(matrix))

    def quantiles(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.predict(matrix), self.predict(matrix)

    def update(self, sample: StepSample) -> None:
        self.num_updates += 1
