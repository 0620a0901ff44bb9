"""Trains the step-time network: a residual over the physics, in log time.

Two pinball losses on log(measured / physics) give a median and a 95th percentile
together, and neither depends on how far outliers of a disturbed machine lie. Every
optimiser step takes all of the few thousand rows. Sources: pinball loss, Koenker and
Bassett, *Regression Quantiles* (1978); split conformal prediction of quantiles, Romano,
Patterson and Candes, arXiv 1905.03222.

`N` is the number of measured steps, `F` their features, `K` the network's inputs.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jserve_sched.timing.mlp import (
    NUM_OUTPUTS,
    MlpWeights,
    fit_physics,
    mlp_inputs,
    mlp_outputs,
    physics_s,
)
from jserve_sched.timing.predictor import UPPER_QUANTILE

_EPOCH_STEPS = 50  # optimiser steps between two evaluations on the validation steps
_VALIDATION_SHARE = 0.2
_LEAST_SCALE = 1e-6  # inputs that vary less are not scaled


class _Data(NamedTuple):
    """Steps of one part: scaled inputs `[N, K]`, log of measured over physics `[N]`."""

    inputs: jax.Array
    residuals: jax.Array


def _pinball(error: jax.Array, quantile: float) -> jax.Array:
    """Returns the mean pinball loss of `error`, measured minus predicted."""
    loss: jax.Array = (error * (quantile - (error < 0))).mean()
    return loss


def _loss(params: Any, data: _Data) -> jax.Array:
    outputs = mlp_outputs(params, data.inputs)
    error = data.residuals - outputs[:, 0]
    to_upper = jax.nn.softplus(outputs[:, 1])
    return _pinball(error, 0.5) + _pinball(error - to_upper, UPPER_QUANTILE)


def train_network(
    matrix: np.ndarray,
    duration_s: np.ndarray,
    is_validation: np.ndarray | None = None,
    *,
    hidden: tuple[int, ...] = (32, 32),
    learning_rate: float = 1e-3,
    weight_decay: float = 1.0,
    max_epochs: int = 40,
    patience: int = 10,
    seed: int = 0,
) -> tuple[MlpWeights, dict[str, int]]:
    """Returns the network of the best validation loss, and the number of epochs.

    Args:
      matrix: Features of the steps, `[N, F]`.
      duration_s: Their durations `[N]`, seconds above 0.
      is_validation: `[N]` bool, steps that end the training, and set the 95th
        percentile; None takes a fifth at random.
      hidden: Number of units in each hidden layer.
      learning_rate: AdamW's at the start; it falls to 0 along a cosine.
      weight_decay: AdamW's, of kernels only.
      patience: Epochs without a better validation loss after which training ends.

    Raises:
      ValueError: If no step is for training, or none for validation, or no epoch had a
        finite loss.
    """
    if is_validation is None:
        rng = np.random.default_rng(seed)
        is_validation = rng.random(len(matrix)) < _VALIDATION_SHARE
    if is_validation.all() or not is_validation.any():
        raise ValueError("the samples hold no step for training or for validation")
    # The physics, and the network's inputs, scaled by the training steps.
    train = ~is_validation
    cost_s = fit_physics(matrix[train], duration_s[train])
    base_s = physics_s(cost_s, matrix)
    inputs = mlp_inputs(matrix, base_s)
    mean, spread = inputs[train].mean(axis=0), inputs[train].std(axis=0)
    scale = np.where(spread > _LEAST_SCALE, spread, 1.0)
    scaled, residuals = (inputs - mean) / scale, np.log(duration_s / base_s)
    known, unseen = (
        _Data(*(jnp.asarray(one[part], jnp.float32) for one in (scaled, residuals)))
        for part in (train, is_validation)
    )

    # The optimiser: AdamW with a cosine schedule; biases do not decay.
    schedule = optax.cosine_decay_schedule(learning_rate, max_epochs * _EPOCH_STEPS)
    optimiser = optax.adamw(
        schedule,
        weight_decay=weight_decay,
        mask=lambda params: [(True, False) for _ in params],
    )

    @jax.jit
    def run_epoch(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            updates, state = optimiser.update(
                jax.grad(_loss)(params, known), state, params
            )
            return (optax.apply_updates(params, updates), state), None

        carry, _ = jax.lax.scan(step, (params, state), length=_EPOCH_STEPS)
        return *carry, _loss(carry[0], unseen)

    # Train, from the physics' time as the median, and e^0.1 times that as the p95.
    keys = jax.random.split(jax.random.key(seed), len(hidden) + 1)
    widths = (inputs.shape[1], *hidden, NUM_OUTPUTS)
    initial = jax.nn.initializers.he_normal()
    params = [
        (initial(key, (fan_in, fan_out), jnp.float32), jnp.zeros(fan_out))
        for key, fan_in, fan_out in zip(keys, widths[:-1], widths[1:], strict=True)
    ]
    params[-1] = (params[-1][0] * 0.0, jnp.array([0.0, math.log(math.expm1(0.1))]))
    state, epoch = optimiser.init(params), 0
    best, best_loss, best_epoch = params, math.inf, 0
    while epoch < max_epochs and epoch - best_epoch < patience:
        params, state, loss = run_epoch(params, state)
        epoch += 1
        if float(loss) < best_loss:
            best, best_loss, best_epoch = params, float(loss), epoch
    if not math.isfinite(best_loss):
        raise ValueError(
            f"no epoch of {epoch} had a finite validation loss: "
            f"learning_rate={learning_rate} is too large"
        )

    # The 95th percentile is shifted to cover 95 % of the validation steps.
    layers = [
        (np.array(kernel, np.float64), np.array(bias, np.float64))
        for kernel, bias in best
    ]
    layers[-1][1][1] += _upper_shift(
        mlp_outputs(layers, scaled[is_validation]), residuals[is_validation]
    )
    weights = MlpWeights(
        cost_s=cost_s,
        mean=mean,
        scale=scale,
        low=scaled[train].min(axis=0),
        high=scaled[train].max(axis=0),
        layers=tuple(layers),
    )
    return weights, {"num_epochs": epoch, "best_epoch": best_epoch}


def _upper_shift(outputs: np.ndarray, residuals: np.ndarray) -> float:
    """Returns what to add to the bias of the second output.

    It is the least that covers 95 % of the steps with these outputs `[N, 2]`, with
    split conformal prediction's correction for their number.
    """
    # Log time above the median; measurements below it need no shift.
    excess = np.maximum(residuals - outputs[:, 0], 1e-9)
    wanted = np.log(np.expm1(excess)) - outputs[:, 1]
    rank = min(math.ceil((wanted.size + 1) * UPPER_QUANTILE), wanted.size)
    return float(np.partition(wanted, rank - 1)[rank - 1])
