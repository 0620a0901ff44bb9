"""`mlp`: a small network over the linear model, trained offline, evaluated in NumPy.

The one idea: the network says only by what factor the linear model is wrong, as a
residual in log time, and by how much more the 95th percentile lies above. The residual
is bounded, and fades where a step lies outside the range the network was trained on:
far from its data the answer is the linear model's, so it cannot be absurd there.

While serving, the network and the linear model under it stay as trained, since one was
trained over the other. What is learned is a factor for each scenario, which follows
the middle of measured over predicted time, and another for the 95th percentile.

`N` is the number of steps asked about at once, `F` the features of a step, `K` the
network's inputs, `H` the units of a layer.
"""

import dataclasses
import math

import numpy as np

from jserve_sched import features
from jserve_sched.features import (
    BLOCK_PAGES,
    DECODE_PAGES,
    NUM_BLOCKS,
    NUM_ROWS,
    SCENARIOS,
)
from jserve_sched.linear_predictor import LinearModel
from jserve_sched.predictor import StepSample, UpperRatio, is_sound

NUM_INPUTS = 7  # six sizes of the static shape, and the linear model's answer
NUM_OUTPUTS = 2  # log residual of the median; softplus^-1 of the log step to the p95
MAX_LOG_RESIDUAL = 3.0  # one long row among many: a factor of 8 was measured
MAX_LOG_INCREMENT = 1.0
MIN_BASE_S = 1e-6  # the least that the linear model counts as, for a logarithm

_LEARN_EVERY = 16  # samples between two looks at the correction
_MAX_LOG_CORRECTION = 1.0
_MAX_WEIGHT = 64  # the correction forgets samples older than about this many
_MAX_LOG_ERROR = 0.5  # an outlier counts as no more


def mlp_inputs(matrix: np.ndarray, base_s: np.ndarray) -> np.ndarray:
    """Returns the network's inputs `[N, K]`, not yet scaled, for features `[N, F]`.

    They are log(1 + x) of B, NB, the pages of the longest rows of either kind, and
    the pages that all compiled rows and all compiled blocks loop over; then the
    logarithm of the linear model's answer. The network must take that answer back
    where only the longest row counts, which is a subtraction once it is an input, and
    x1 to x7 come in through it: given one by one they are learned by heart.

    Args:
      matrix: the features.
      base_s: `[N]`, what `mlp_base_s` says of them.
    """
    inputs = np.empty((len(matrix), NUM_INPUTS))
    inputs[:, :4] = matrix[:, NUM_ROWS:]
    inputs[:, 4] = matrix[:, NUM_ROWS] * matrix[:, DECODE_PAGES]
    inputs[:, 5] = matrix[:, NUM_BLOCKS] * matrix[:, BLOCK_PAGES]
    np.log1p(inputs[:, :6], out=inputs[:, :6])
    np.log(base_s, out=inputs[:, 6])
    return inputs


def mlp_base_s(linear: LinearModel, matrix: np.ndarray) -> np.ndarray:
    """Returns the seconds `[N]` that the residual is taken over, all above 0."""
    base_s = linear.predict(matrix)
    np.maximum(base_s, MIN_BASE_S, out=base_s)
    return base_s


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MlpWeights:
    """A trained network and the linear model under it.

    Attributes:
      linear: what the residual is over.
      mean: `[K]`, taken off the inputs.
      scale: `[K]`, above 0, divides them after that.
      low: `[K]`, the least scaled input of the training data.
      high: `[K]`, the largest.
      layers: (kernel `[inputs, H]`, bias `[H]`) of each dense layer; a ReLU follows
        each but the last, which has two outputs.
    """

    linear: LinearModel
    mean: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    def __post_init__(self) -> None:
        for name in ("mean", "scale", "low", "high"):
            shape = getattr(self, name).shape
            if shape != (NUM_INPUTS,):
                raise ValueError(f"{name} has shape {shape}, not {(NUM_INPUTS,)}")
        if not self.scale.min() > 0.0:
            raise ValueError(f"the least scale is {self.scale.min()}, not above 0")
        if not self.layers:
            raise ValueError("a network needs at least one layer")
        width = NUM_INPUTS
        for index, (kernel, bias) in enumerate(self.layers):
            if kernel.ndim != 2 or kernel.shape[0] != width:
                raise ValueError(
                    f"kernel {index} has shape {kernel.shape}, not ({width}, units)"
                )
            width = kernel.shape[1]
            if bias.shape != (width,):
                raise ValueError(f"bias {index} has shape {bias.shape}, not {(width,)}")
        if width != NUM_OUTPUTS:
            raise ValueError(f"the last layer has {width} outputs, not {NUM_OUTPUTS}")


class MlpPredictor:
    """Evaluates a network, and corrects its scale and its 95th percentile online."""

    def __init__(self, weights: MlpWeights):
        self._linear = weights.linear
        self._low = weights.low.astype(np.float64)
        self._high = weights.high.astype(np.float64)
        self._mean = weights.mean.astype(np.float64)
        self._per_scale = 1.0 / weights.scale.astype(np.float64)
        self._layers = [
            (kernel.astype(np.float64), bias.astype(np.float64))
            for kernel, bias in weights.layers
        ]
        self._correction = np.zeros(len(SCENARIOS))  # log(measured / predicted)
        self._factor = np.ones(len(SCENARIOS))  # its exponential
        self._weight = [0] * len(SCENARIOS)
        self._upper = UpperRatio(start=1.0, least=0.5)
        self._new: list[StepSample] = []  # not yet learned from

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        scenario = features.scenarios(matrix)
        base_s = self._base_s(scenario, matrix)
        return self._median_s(scenario, base_s, self._residuals(matrix, base_s)[0])

    def predict_upper(self, matrix: np.ndarray) -> np.ndarray:
        """Returns the 95th percentiles `[N]` in seconds for features `[N, F]`.

        None is below what `predict` says of the same step.
        """
        scenario = features.scenarios(matrix)
        base_s = self._base_s(scenario, matrix)
        residual, increment = self._residuals(matrix, base_s)
        upper_s = self._median_s(scenario, base_s, residual)
        ratio = np.exp(increment) * self._upper.of(scenario)
        upper_s *= np.maximum(ratio, 1.0)
        return upper_s

    def _base_s(self, scenario: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Returns what `mlp_base_s` does, for scenarios that are known."""
        base_s = self._linear.predict_in(scenario, matrix)
        np.maximum(base_s, MIN_BASE_S, out=base_s)
        return base_s

    def _median_s(
        self, scenario: np.ndarray, base_s: np.ndarray, residual: np.ndarray
    ) -> np.ndarray:
        median_s: np.ndarray = base_s * np.exp(residual)
        median_s *= self._factor[scenario]
        return median_s

    def _residuals(
        self, matrix: np.ndarray, base_s: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns log residuals of the median, and log steps to the p95, `[N]` each."""
        # Numbers that are none may come of broken weights; SafePredictor sees to them.
        with np.errstate(invalid="ignore", over="ignore"):
            inputs = mlp_inputs(matrix, base_s)
            return self._outputs((inputs - self._mean) * self._per_scale)

    def _outputs(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the same for scaled inputs `[N, K]`."""
        values = np.minimum(np.maximum(inputs, self._low), self._high)
        # How far outside the training range a step lies, in the worst input.
        outside = np.abs(inputs - values).max(axis=1)
        for kernel, bias in self._layers[:-1]:
            values = values @ kernel
            values += bias
            np.maximum(values, 0.0, out=values)
        kernel, bias = self._layers[-1]
        outputs = values @ kernel + bias
        residual = np.minimum(
            np.maximum(outputs[:, 0], -MAX_LOG_RESIDUAL), MAX_LOG_RESIDUAL
        ) / (1.0 + outside)
        increment = np.minimum(np.logaddexp(0.0, outputs[:, 1]), MAX_LOG_INCREMENT)
        return residual, increment

    def update(self, sample: StepSample) -> None:
        """Learns from one measured step, in batches; leaves out what is none."""
        if not is_sound(sample):
            return
        self._new.append(sample)
        if len(self._new) >= _LEARN_EVERY:
            self._learn()

    def _learn(self) -> None:
        matrix = np.stack([one.features for one in self._new])
        measured_s = np.array([one.duration_s for one in self._new])
        self._new.clear()
        scenario = features.scenarios(matrix)
        base_s = self._base_s(scenario, matrix)
        residual, increment = self._residuals(matrix, base_s)
        median_s = self._median_s(scenario, base_s, residual)
        log_ratio = np.log(measured_s / median_s)
        upper_ratio = np.exp(log_ratio - increment)
        if not (np.isfinite(log_ratio).all() and np.isfinite(upper_ratio).all()):
            return  # a broken network: what replaces its answers learns by itself
        self._upper.add(scenario, upper_ratio)
        for index in range(len(SCENARIOS)):
            chosen = log_ratio[scenario == index]
            if not chosen.size:
                continue
            self._weight[index] = min(self._weight[index] + chosen.size, _MAX_WEIGHT)
            error = min(max(float(np.median(chosen)), -_MAX_LOG_ERROR), _MAX_LOG_ERROR)
            moved = self._correction[index] + error * chosen.size / self._weight[index]
            bounded = min(max(moved, -_MAX_LOG_CORRECTION), _MAX_LOG_CORRECTION)
            self._correction[index] = bounded
            self._factor[index] = math.exp(bounded)
