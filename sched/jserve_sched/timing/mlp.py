"""`mlp`: a small network over the linear model, trained offline, evaluated in NumPy.

The network corrects the linear model by a factor, the exponential of its first output,
and gives the ratio of the 95th percentile to the median. The correction is bounded, and
fades outside the range of the training data, so that it cannot be absurd there. While
serving, network and linear model stay as trained. Only two factors for each scenario
are learned: the median of measured over predicted time, and one for the percentile.

`N` is the number of steps asked about at once, `F` the features of a step, `K` the
network's inputs, `H` the units of a layer.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jserve_sched.steps.features import BLOCK_PAGES, DECODE_PAGES, NUM_BLOCKS, NUM_ROWS
from jserve_sched.timing.linear import LinearModel
from jserve_sched.timing.predictor import RatioQuantile, StepSample, is_sound

NUM_INPUTS = 5  # four sizes of the bucket and its pages, and the linear model's time
_SIZES = [NUM_ROWS, NUM_BLOCKS, DECODE_PAGES, BLOCK_PAGES]
NUM_OUTPUTS = 2  # log of the correction; softplus^-1 of the log of p95 over median
MAX_LOG_RESIDUAL = 3.0
MAX_LOG_INCREMENT = 1.0
_MIN_BASE_S = 1e-6  # lower bound of the linear model's time, for its logarithm

Layers = Sequence[tuple[Any, Any]]
"""Kernel `[inputs, H]` and bias `[H]` of each layer, in NumPy or JAX."""


def mlp_inputs(matrix: np.ndarray, base_s: np.ndarray) -> np.ndarray:
    """Returns the network's inputs `[N, K]`, not yet scaled, for features `[N, F]`.

    They are log(1 + x) of B, NB and the KV pages that decodes and blocks read; then the
    logarithm of the linear model's time. The paper's features x1 to x7 enter only
    through it: given one by one, the network overfits to them.

    Args:
      base_s: Seconds `[N]` of `mlp_base_s`.
    """
    inputs = np.empty((len(matrix), NUM_INPUTS))
    np.log1p(matrix[:, _SIZES], out=inputs[:, :4])
    np.log(base_s, out=inputs[:, 4])
    return inputs


def mlp_base_s(linear: LinearModel, matrix: np.ndarray) -> np.ndarray:
    """Returns the seconds `[N]` that the network corrects, all above 0."""
    base_s = linear.predict(matrix)
    np.maximum(base_s, _MIN_BASE_S, out=base_s)
    return base_s


def mlp_outputs(layers: Layers, values: Any) -> Any:
    """Returns the network's outputs `[N, 2]` for scaled inputs, in NumPy or JAX."""
    for kernel, bias in layers[:-1]:
        values = values @ kernel + bias
        values = values * (values > 0.0)  # ReLU
    kernel, bias = layers[-1]
    return values @ kernel + bias


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MlpWeights:
    """A trained network and the linear model under it.

    Attributes:
      linear: Linear model that the network corrects.
      mean: `[K]`, mean that is subtracted from the inputs.
      scale: `[K]`, above 0, scale that they are then divided by.
      low: `[K]`, least scaled inputs of the training data.
      high: `[K]`, largest scaled inputs of the training data.
      layers: (kernel `[inputs, H]`, bias `[H]`) of each dense layer. A ReLU follows
        each but the last, which has two outputs.
    """

    linear: LinearModel
    mean: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]


class MlpPredictor:
    """Evaluates a network, and corrects its scale and its 95th percentile online."""

    def __init__(self, weights: MlpWeights):
        self._weights = weights
        self._middle = RatioQuantile(0.5, start=1.0, least=0.25, window=64)
        self._upper = RatioQuantile(start=1.0, least=0.5)

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        return self._middle.scale(self._evaluate(matrix)[0], matrix)

    def predict_upper(self, matrix: np.ndarray) -> np.ndarray:
        """Returns 95th percentiles `[N]` in seconds for features `[N, F]`.

        None is below the prediction of `predict` for the same step.
        """
        found, to_upper = self._evaluate(matrix)
        found = self._middle.scale(found, matrix)
        found *= np.maximum(self._upper.scale(to_upper, matrix), 1.0)
        return found

    def update(self, sample: StepSample) -> None:
        """Learns from one measured step, if it is valid."""
        if is_sound(sample):
            self._upper.learn(sample, self._trained_upper)
            self._middle.learn(sample, lambda matrix: self._evaluate(matrix)[0])

    def _trained_upper(self, matrix: np.ndarray) -> np.ndarray:
        """Returns 95th percentiles `[N]` in seconds, without their learned factor."""
        found, to_upper = self._evaluate(matrix)
        found *= self._middle.scale(to_upper, matrix)
        return found

    def _evaluate(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the network's medians in seconds, and p95 over median, `[N]` each."""
        weights = self._weights
        base_s = mlp_base_s(weights.linear, matrix)
        # Broken weights may give NaN or infinity; SafePredictor replaces those.
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
            return base_s * np.exp(residual), np.exp(increment)
