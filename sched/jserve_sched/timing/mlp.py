"""`mlp`: a small network over the physics of a step, evaluated in NumPy.

A step's time is first a non-negative sum over what its program computes, the compiled
rows and blocks and the rows that sample, and over the KV pages that attention reads.
The network corrects this sum by a factor, the exponential of its first output, and
gives the ratio of the 95th percentile to the median. The correction is bounded, and
fades outside the range of the training data, so that it cannot be absurd there. Once
trained, it does not change; `CalibratedPredictor` follows the machine.

It uses the features that a `StepRecord` has, so that step logs can train it. `N` is the
number of steps asked about at once, `F` the features of a step, `S` the sizes used,
`K` the network's inputs, `H` the units of a layer.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jserve_sched.steps.features import (
    BLOCK_PAGES,
    DECODE_PAGES,
    NUM_BLOCKS,
    NUM_DECODES,
    NUM_ROWS,
)
from jserve_sched.timing.linear import fit_nonnegative
from jserve_sched.timing.predictor import StepModel

_SIZES = [NUM_ROWS, NUM_BLOCKS, NUM_DECODES, DECODE_PAGES, BLOCK_PAGES]
NUM_COSTS = NUM_INPUTS = 1 + len(_SIZES)
NUM_OUTPUTS = 2  # log of the correction; softplus^-1 of the log of p95 over median
MAX_LOG_RESIDUAL = 1.5
MAX_LOG_INCREMENT = 1.0
_MIN_PHYSICS_S = 1e-6  # lower bound of the sum, for its logarithm

Layers = Sequence[tuple[Any, Any]]
"""Kernel `[inputs, H]` and bias `[H]` of each layer, in NumPy or JAX."""


def fit_physics(matrix: np.ndarray, duration_s: np.ndarray) -> np.ndarray:
    """Returns the seconds of a step, and of one more of each size, `[1 + S]`."""
    design: np.ndarray = np.insert(matrix[:, _SIZES], 0, 1.0, axis=1)
    return fit_nonnegative(design, duration_s)


def physics_s(cost_s: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Returns the seconds `[N]` that the network corrects, all above 0."""
    found: np.ndarray = matrix[:, _SIZES] @ cost_s[1:] + cost_s[0]
    np.maximum(found, _MIN_PHYSICS_S, out=found)
    return found


def mlp_inputs(matrix: np.ndarray, base_s: np.ndarray) -> np.ndarray:
    """Returns the network's inputs `[N, K]`, not yet scaled, for features `[N, F]`.

    They are log(1 + x) of the sizes, and the logarithm of the physics' seconds `[N]`.
    """
    inputs = np.empty((len(matrix), NUM_INPUTS))
    np.log1p(matrix[:, _SIZES], out=inputs[:, :-1])
    np.log(base_s, out=inputs[:, -1])
    return inputs


def mlp_outputs(layers: Layers, values: Any) -> Any:
    """Returns the network's outputs `[N, 2]` for scaled inputs, in NumPy or JAX."""
    for kernel, bias in layers[:-1]:
        values = values @ kernel + bias
        values = values * (values > 0.0)  # ReLU
    kernel, bias = layers[-1]
    return values @ kernel + bias


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MlpWeights:
    """A trained network and the physics under it.

    Attributes:
      cost_s: `[1 + S]`, seconds of a step, and of one more of each size.
      mean: `[K]`, mean that is subtracted from the inputs.
      scale: `[K]`, above 0, scale that they are then divided by.
      low, high: `[K]`, least and largest scaled inputs of the training data.
      layers: A ReLU follows each but the last, which has two outputs.
    """

    cost_s: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]


class MlpPredictor(StepModel):
    """Evaluates a network."""

    def __init__(self, weights: MlpWeights):
        self._weights = weights

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        return self.quantiles(matrix)[0]

    def quantiles(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns durations and their 95th percentiles, `[N]` seconds each."""
        weights = self._weights
        base_s = physics_s(weights.cost_s, matrix)
        # Broken weights may give NaN or infinity; BestPredictor replaces those.
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = (mlp_inputs(matrix, base_s) - weights.mean) / weights.scale
            values = np.minimum(np.maximum(scaled, weights.low), weights.high)
            # How far outside the training range a step lies, in the worst input.
            outside = np.abs(scaled - values).max(axis=1)
            residual, increment = mlp_outputs(weights.layers, values).T
            residual = np.minimum(
                np.maximum(residual, -MAX_LOG_RESIDUAL), MAX_LOG_RESIDUAL
            ) / (1.0 + outside)
            increment = np.minimum(np.logaddexp(0.0, increment), MAX_LOG_INCREMENT)
            found_s = base_s * np.exp(residual)
            return found_s, found_s * np.exp(increment)
