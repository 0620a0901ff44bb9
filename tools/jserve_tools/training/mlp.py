"""Trains the step-time network: a residual over the linear model, in log time.

Two pinball losses on log(measured / linear) give a median and a 95th percentile
together, and neither depends on how far outliers of a disturbed machine lie. Every
optimiser step takes all of the few thousand rows. Sources: pinball loss, Koenker and
Bassett, *Regression Quantiles* (1978); split conformal prediction of quantiles, Romano,
Patterson and Candes, arXiv 1905.03222.

`N` is the number of steps, `R` the rounds, `K` the network's inputs.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jserve_sched.timing.linear import fit_linear
from jserve_sched.timing.mlp import (
    NUM_OUTPUTS,
    MlpWeights,
    mlp_base_s,
    mlp_inputs,
    mlp_outputs,
)
from jserve_sched.timing.predictor import UPPER_QUANTILE
from jserve_tools.training.config import TrainingConfig
from jserve_tools.training.samples import TRAIN, VALIDATION, Samples

_EPOCH_STEPS = 50  # optimiser steps between two evaluations on the validation steps
_LEAST_SCALE = 1e-6  # inputs that vary less are not scaled
_MIN_EXPERT_SAMPLES = 30  # steps of a scenario that suffice for a separate linear model

Params = list[tuple[jax.Array, jax.Array]]
"""Kernel and bias of each layer."""


class Progress(NamedTuple):
    """State of a training; a tree of arrays.

    Attributes:
      params: Parameters after the last epoch.
      optimiser: State of the optimiser.
      epoch: Number of epochs done, `[]` int32.
      best_params: Parameters with the best validation loss.
      best_loss: Best validation loss, `[]`.
      best_epoch: Number of epochs done when it was reached, `[]` int32.
    """

    params: Params
    optimiser: Any
    epoch: jax.Array
    best_params: Params
    best_loss: jax.Array
    best_epoch: jax.Array


class _Data(NamedTuple):
    """Steps of one part of the split: scaled inputs `[N, K]`, log residuals `[R, N]`.

    A residual is the logarithm of measured over linear time.
    """

    inputs: jax.Array
    residuals: jax.Array


def _optimiser(config: TrainingConfig) -> optax.GradientTransformation:
    """Returns AdamW with a cosine schedule; biases do not decay."""
    num_steps = config.max_epochs * _EPOCH_STEPS
    return optax.adamw(
        optax.cosine_decay_schedule(config.learning_rate, num_steps),
        weight_decay=config.weight_decay,
        mask=lambda params: [(True, False) for _ in params],
    )


def _pinball(error: jax.Array, quantile: float) -> jax.Array:
    """Returns the mean pinball loss of `error`, measured minus predicted."""
    loss: jax.Array = (error * (quantile - (error < 0))).mean()
    return loss


def _loss(params: Params, data: _Data) -> jax.Array:
    outputs = mlp_outputs(params, data.inputs)
    error = data.residuals - outputs[:, 0]
    to_upper = jax.nn.softplus(outputs[:, 1])
    return _pinball(error, 0.5) + _pinball(error - to_upper, UPPER_QUANTILE)


@functools.partial(jax.jit, static_argnums=0)
def _run_epoch(
    config: TrainingConfig, progress: Progress, train: _Data, validation: _Data
) -> Progress:
    """Returns the state after one more epoch."""
    optimiser = _optimiser(config)

    def step(carry: tuple[Params, Any], _: None) -> tuple[tuple[Params, Any], None]:
        params, state = carry
        updates, state = optimiser.update(jax.grad(_loss)(params, train), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(
        step, (progress.params, progress.optimiser), length=_EPOCH_STEPS
    )
    loss, epoch = _loss(params, validation), progress.epoch + 1
    best = jax.tree.map(
        functools.partial(jnp.where, loss < progress.best_loss),
        (params, loss, epoch),
        (progress.best_params, progress.best_loss, progress.best_epoch),
    )
    return Progress(params, state, epoch, *best)


class Training:
    """One network on one set of samples."""

    def __init__(self, samples: Samples, config: TrainingConfig):
        """Fits the linear model to the medians of training steps; prepares the data.

        Raises:
          ValueError: If no step is for training, or none for validation.
        """
        self._config = config
        # Fit the linear model, on which the residuals are based.
        train, validation = map(samples.steps_in, (TRAIN, VALIDATION))
        if not train.size or not validation.size:
            raise ValueError("the samples hold no step for training or for validation")
        self._linear = fit_linear(
            samples.features[train],
            samples.median_s[train],
            min_expert_samples=_MIN_EXPERT_SAMPLES,
        )
        base_s = mlp_base_s(self._linear, samples.features)
        # Scale the inputs by the training steps.
        inputs = mlp_inputs(samples.features, base_s)
        self._mean = inputs[train].mean(axis=0)
        spread = inputs[train].std(axis=0)
        self._scale = np.where(spread > _LEAST_SCALE, spread, 1.0)
        scaled = (inputs - self._mean) / self._scale
        self._low, self._high = scaled[train].min(axis=0), scaled[train].max(axis=0)
        residuals = np.log(samples.duration_s / base_s)
        self._train, self._validation = (
            _Data(
                jnp.asarray(scaled[steps], jnp.float32),
                jnp.asarray(residuals[:, steps], jnp.float32),
            )
            for steps in (train, validation)
        )

    def _start(self) -> Progress:
        """Returns the state before the first epoch."""
        hidden = self._config.hidden
        keys = jax.random.split(jax.random.key(self._config.seed), len(hidden) + 1)
        widths = (len(self._mean), *hidden, NUM_OUTPUTS)
        initial = jax.nn.initializers.he_normal()
        params: Params = [
            (initial(key, (fan_in, fan_out), jnp.float32), jnp.zeros(fan_out))
            for key, fan_in, fan_out in zip(keys, widths[:-1], widths[1:], strict=True)
        ]
        # At first the median is the linear model's time, and the p95 e^0.1 times that.
        kernel, _ = params[-1]
        params[-1] = (kernel * 0.0, jnp.array([0.0, math.log(math.expm1(0.1))]))
        zero, optimiser = jnp.zeros((), jnp.int32), _optimiser(self._config)
        return Progress(
            params, optimiser.init(params), zero, params, jnp.array(jnp.inf), zero
        )

    def run(
        self, on_epoch: Callable[[Progress], object] = lambda progress: None
    ) -> Progress:
        """Returns the last state: after all epochs, or `patience` after the best.

        Args:
          on_epoch: Called with the state after each epoch.
        """
        config, progress = self._config, self._start()
        while (
            progress.epoch < config.max_epochs
            and progress.epoch - progress.best_epoch < config.patience
        ):
            progress = _run_epoch(config, progress, self._train, self._validation)
            on_epoch(progress)
        return progress

    def weights(self, progress: Progress) -> MlpWeights:
        """Returns the best network, its 95th percentile shifted to cover 95 %.

        Raises:
          ValueError: If no epoch had a finite loss.
        """
        if not math.isfinite(float(progress.best_loss)):
            raise ValueError(
                f"no epoch of {int(progress.epoch)} had a finite validation loss: "
                f"learning_rate={self._config.learning_rate} is too large"
            )
        layers = [
            (np.array(kernel, np.float64), np.array(bias, np.float64))
            for kernel, bias in progress.best_params
        ]
        layers[-1][1][1] += self._upper_shift(layers)
        return MlpWeights(
            linear=self._linear,
            mean=self._mean,
            scale=self._scale,
            low=self._low,
            high=self._high,
            layers=tuple(layers),
        )

    def _upper_shift(self, layers: list[tuple[np.ndarray, np.ndarray]]) -> float:
        """Returns what to add to the bias of the second output.

        It is the least that covers 95 % of the single measurements of the validation
        steps, with split conformal prediction's correction for their number.
        """
        inputs, residuals = (np.asarray(one, np.float64) for one in self._validation)
        outputs = mlp_outputs(layers, inputs)
        # Log time above the median, [R, N]; measurements below it need no shift.
        excess = np.maximum(residuals - outputs[:, 0], 1e-9)
        wanted = np.log(np.expm1(excess)) - outputs[:, 1]
        rank = min(math.ceil((wanted.size + 1) * UPPER_QUANTILE), wanted.size)
        return float(np.partition(wanted, rank - 1, axis=None)[rank - 1])
