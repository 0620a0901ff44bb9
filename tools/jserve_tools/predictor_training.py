"""Trains the step-time network: a residual over the linear model, in log time.

The one idea: two pinball losses on log(measured / linear) give a median and a 95th
percentile at once, and neither cares how long the tail of a disturbed machine is. The
data are a few thousand rows, so every step takes all of them: no order to draw, and a
training that was interrupted goes on as if it had not been.

Sources: pinball loss, Koenker and Bassett, *Regression Quantiles* (1978); the last
shift of the 95th percentile, split conformal prediction of quantiles, Romano, Patterson
and Candes, arXiv 1905.03222.

`N` is the number of steps, `R` the rounds, `K` the network's inputs.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jserve_sched.linear_predictor import LinearModel, fit_linear
from jserve_sched.mlp_predictor import (
    NUM_OUTPUTS,
    MlpWeights,
    mlp_base_s,
    mlp_inputs,
)
from jserve_tools.samples import TRAIN, VALIDATION, Samples

UPPER_QUANTILE = 0.95
_MEDIAN = 0.5
_EPOCH_STEPS = 50  # optimiser steps between two looks at the validation steps
_LEAST_SCALE = 1e-6  # an input that varies less is left as it is

Params = list[tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the network is trained.

    Attributes:
      hidden: units of each hidden layer.
      learning_rate: Adam's, at the start; it falls to 0 along a cosine.
      weight_decay: of the kernels, decoupled from the gradient (AdamW).
      max_epochs: epochs of 50 steps, if nothing stops earlier.
      patience: epochs without a better validation loss after which training stops.
      min_expert_samples: steps of a scenario that give it a linear model of its own.
      seed: draws the first weights.
    """

    hidden: tuple[int, ...] = (32, 32)
    learning_rate: float = 5e-3
    weight_decay: float = 0.1
    max_epochs: int = 120
    patience: int = 60
    min_expert_samples: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.hidden or not all(1 <= units <= 1024 for units in self.hidden):
            raise ValueError(
                f"hidden={list(self.hidden)} is not a list of 1 to 1024 units a layer"
            )
        for name in ("learning_rate", "max_epochs", "patience", "min_expert_samples"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} is not above 0")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay} is below 0")


class Progress(NamedTuple):
    """All that training goes on from; a tree of arrays.

    Attributes:
      params: kernel and bias of each layer.
      optimiser: the optimiser's state.
      epoch: epochs done, `[]` int32.
      best_params: those of the best validation loss.
      best_loss: that loss, `[]`.
      best_epoch: the epoch it came after, `[]` int32.
      losses: (training, validation) of each epoch, `[max_epochs, 2]`; NaN is to come.
    """

    params: Params
    optimiser: Any
    epoch: jax.Array
    best_params: Params
    best_loss: jax.Array
    best_epoch: jax.Array
    losses: jax.Array


class _Data(NamedTuple):
    """Steps of one part of the split: inputs `[N, K]`, log residuals `[R, N]`."""

    inputs: jax.Array
    residuals: jax.Array


def _forward(params: Params, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns log residuals of the median and of the upper quantile, `[N]` each."""
    values = inputs
    for kernel, bias in params[:-1]:
        values = jax.nn.relu(values @ kernel + bias)
    kernel, bias = params[-1]
    outputs = values @ kernel + bias
    return outputs[:, 0], outputs[:, 0] + jax.nn.softplus(outputs[:, 1])


def _pinball(error: jax.Array, quantile: float) -> jax.Array:
    return jnp.mean(jnp.maximum(quantile * error, (quantile - 1.0) * error))


def _loss(params: Params, data: _Data) -> jax.Array:
    median, upper = _forward(params, data.inputs)
    return _pinball(data.residuals - median, _MEDIAN) + _pinball(
        data.residuals - upper, UPPER_QUANTILE
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Descent:
    """The optimiser's settings: all that a compiled epoch depends on but shapes."""

    learning_rate: float
    weight_decay: float
    num_steps: int

    def optimiser(self) -> optax.GradientTransformation:
        """Returns AdamW along a cosine; biases do not decay."""
        return optax.adamw(
            optax.cosine_decay_schedule(self.learning_rate, self.num_steps),
            weight_decay=self.weight_decay,
            mask=lambda params: [(True, False) for _ in params],
        )


@functools.partial(jax.jit, static_argnums=0)
def _run_epoch(
    descent: _Descent, progress: Progress, train: _Data, validation: _Data
) -> Progress:
    """Returns the state an epoch later."""
    optimiser = descent.optimiser()

    def step(
        carry: tuple[Params, Any], _: None
    ) -> tuple[tuple[Params, Any], jax.Array]:
        params, state = carry
        loss, gradient = jax.value_and_grad(_loss)(params, train)
        updates, state = optimiser.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss

    (params, state), losses = jax.lax.scan(
        step, (progress.params, progress.optimiser), length=_EPOCH_STEPS
    )
    loss = _loss(params, validation)
    is_better = loss < progress.best_loss
    epoch = progress.epoch + 1
    best_params, best_loss, best_epoch = jax.tree.map(
        lambda new, old: jnp.where(is_better, new, old),
        (params, loss, epoch),
        (progress.best_params, progress.best_loss, progress.best_epoch),
    )
    return Progress(
        params=params,
        optimiser=state,
        epoch=epoch,
        best_params=best_params,
        best_loss=best_loss,
        best_epoch=best_epoch,
        losses=progress.losses.at[progress.epoch].set(jnp.stack((losses[-1], loss))),
    )


class Training:
    """One network on one set of samples.

    Attributes:
      config: how it is trained.
      linear: the model under the network, fitted to the medians of training steps.
      digest: tells this training from one with other samples or another config.
    """

    def __init__(self, samples: Samples, config: TrainingConfig):
        """Fits the linear model and lays out the data.

        Raises:
          ValueError: if no step is for training, or none for validation.
        """
        self.config = config
        self._samples = samples
        parts = {part: samples.steps_in(part) for part in (TRAIN, VALIDATION)}
        for part, name in ((TRAIN, "training"), (VALIDATION, "validation")):
            if not parts[part].size:
                raise ValueError(f"the samples hold no step for {name}")
        train = parts[TRAIN]
        self.linear: LinearModel = fit_linear(
            samples.features[train],
            samples.median_s[train],
            min_expert_samples=config.min_expert_samples,
        )
        inputs = self._inputs(samples.features[train])
        self._mean = inputs.mean(axis=0)
        spread = inputs.std(axis=0)
        self._scale = np.where(spread > _LEAST_SCALE, spread, 1.0)
        scaled = (inputs - self._mean) / self._scale
        self._low, self._high = scaled.min(axis=0), scaled.max(axis=0)
        self._train, self._validation = (
            self._data(parts[part]) for part in (TRAIN, VALIDATION)
        )
        self._descent = _Descent(
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            num_steps=config.max_epochs * _EPOCH_STEPS,
        )
        content = json.dumps(dataclasses.asdict(config), sort_keys=True).encode()
        for array in (samples.features, samples.duration_s, samples.split):
            content += np.ascontiguousarray(array).tobytes()
        self.digest = hashlib.sha256(content).hexdigest()[:16]

    def _inputs(self, matrix: np.ndarray) -> np.ndarray:
        return mlp_inputs(matrix, mlp_base_s(self.linear, matrix))

    def _data(self, steps: np.ndarray) -> _Data:
        matrix = self._samples.features[steps]
        inputs = (self._inputs(matrix) - self._mean) / self._scale
        base_s = mlp_base_s(self.linear, matrix)
        residuals = np.log(self._samples.duration_s[:, steps] / base_s)
        return _Data(
            jnp.asarray(inputs, jnp.float32), jnp.asarray(residuals, jnp.float32)
        )

    def start(self) -> Progress:
        """Returns the state before the first epoch."""
        keys = jax.random.split(
            jax.random.key(self.config.seed), len(self.config.hidden) + 1
        )
        widths = (len(self._mean), *self.config.hidden, NUM_OUTPUTS)
        initial = jax.nn.initializers.he_normal()
        params: Params = [
            (initial(key, (fan_in, fan_out), jnp.float32), jnp.zeros(fan_out))
            for key, fan_in, fan_out in zip(keys, widths[:-1], widths[1:], strict=True)
        ]
        # The first answer is the linear model's, a tenth of it added for the p95.
        kernel, _ = params[-1]
        params[-1] = (kernel * 0.0, jnp.array([0.0, math.log(math.expm1(0.1))]))
        return Progress(
            params=params,
            optimiser=self._descent.optimiser().init(params),
            epoch=jnp.zeros((), jnp.int32),
            best_params=params,
            best_loss=jnp.array(jnp.inf),
            best_epoch=jnp.zeros((), jnp.int32),
            losses=jnp.full((self.config.max_epochs, 2), jnp.nan),
        )

    def is_done(self, progress: Progress) -> bool:
        """Tells whether training is over: all epochs, or none better for long."""
        epoch, best = int(progress.epoch), int(progress.best_epoch)
        return epoch >= self.config.max_epochs or epoch - best >= self.config.patience

    def run(
        self,
        progress: Progress,
        on_epoch: Callable[[Progress], object] = lambda progress: None,
    ) -> Progress:
        """Returns the state at the end.

        Args:
          progress: where to begin.
          on_epoch: told of the state after each epoch.
        """
        while not self.is_done(progress):
            progress = _run_epoch(
                self._descent, progress, self._train, self._validation
            )
            on_epoch(progress)
        return progress

    def weights(self, progress: Progress) -> MlpWeights:
        """Returns the best network, its 95th percentile shifted to hold.

        The shift is the least that covers 95 % of the single measurements of the
        validation steps, with split conformal prediction's correction for their
        number; it goes into the bias of the second output.

        Raises:
          ValueError: if no epoch had a finite loss.
        """
        if not math.isfinite(float(progress.best_loss)):
            raise ValueError(
                f"no epoch of {int(progress.epoch)} had a finite validation loss: "
                f"learning_rate={self.config.learning_rate} is too large"
            )
        layers = [
            (np.array(kernel, np.float64), np.array(bias, np.float64))
            for kernel, bias in progress.best_params
        ]
        kernel, bias = layers[-1]
        layers[-1] = (kernel, bias + np.array([0.0, self._upper_shift(layers)]))
        return MlpWeights(
            linear=self.linear,
            mean=self._mean,
            scale=self._scale,
            low=self._low,
            high=self._high,
            layers=tuple(layers),
        )

    def _upper_shift(self, layers: list[tuple[np.ndarray, np.ndarray]]) -> float:
        values = np.asarray(self._validation.inputs, np.float64)
        for kernel, bias in layers[:-1]:
            values = np.maximum(values @ kernel + bias, 0.0)
        kernel, bias = layers[-1]
        outputs = values @ kernel + bias
        # By how much log time exceeds the median, [R, N]; what is below needs nothing.
        excess = np.asarray(self._validation.residuals, np.float64) - outputs[:, 0]
        wanted = np.log(np.expm1(np.maximum(excess, 1e-9))) - outputs[:, 1]
        count = wanted.size
        rank = min(math.ceil((count + 1) * UPPER_QUANTILE), count)
        return float(np.partition(wanted, rank - 1, axis=None)[rank - 1])
