import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from jserve_sched.buckets import BucketTable
from jserve_sched.features import (
    BLOCK_PAGES,
    DECODE_PAGES,
    NUM_BLOCKS,
    NUM_ROWS,
)
from jserve_sched.mlp_predictor import MlpPredictor
from jserve_tools.predictor_training import Progress, Training, TrainingConfig
from jserve_tools.samples import TEST, VALIDATION, Samples, split_steps
from jserve_tools.step_grid import (
    StepLimits,
    designed_shapes,
    random_shapes,
    step_plan,
)
from jserve_tools.training_state import TrainingState

LIMITS = StepLimits(
    table=BucketTable((2, 8, 16), (0, 2, 4), 32),
    num_slots=16,
    max_num_batched_tokens=16 + 4 * 32,
    max_model_len=4096,
    page_size=128,
)
SHORT = TrainingConfig(max_epochs=6)


def staircase_s(matrix: np.ndarray) -> np.ndarray:
    """A device that pays for compiled shapes and the longest rows alone."""
    rows, blocks = matrix[:, NUM_ROWS], matrix[:, NUM_BLOCKS]
    pages = rows * matrix[:, DECODE_PAGES] + 12 * blocks * matrix[:, BLOCK_PAGES]
    return 1e-3 + 5e-5 * rows + 1e-3 * blocks + 2e-5 * pages


@pytest.fixture(scope="module")
def samples() -> Samples:
    rng = np.random.default_rng(0)
    grid = designed_shapes(LIMITS)
    shapes = grid + random_shapes(LIMITS, rng, num_shapes=300, but=grid)
    matrix = np.stack(
        [step_plan(shape, LIMITS, num_pages=999).features for shape in shapes]
    )
    noise = np.exp(rng.normal(0.0, 0.04, (9, len(matrix))))
    noise *= np.where(rng.random(noise.shape) < 0.05, 1.5, 1.0)  # disturbances
    return Samples(
        features=matrix,
        duration_s=staircase_s(matrix) * noise,
        split=split_steps(matrix, rng),
        timed_features=matrix[:0],
        timed_s=np.empty(0),
        facts={},
    )


def same(one: Progress, other: Progress) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=True)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def test_a_staircase_is_learned_where_the_linear_model_fails(samples: Samples) -> None:
    training = Training(samples, TrainingConfig(max_epochs=60))
    weights = training.weights(training.run(training.start()))
    steps = samples.steps_in(TEST)
    matrix, truth_s = samples.features[steps], staircase_s(samples.features[steps])
    network = MlpPredictor(weights)
    error_s = np.abs(network.predict(matrix) - truth_s)
    linear_error_s = np.abs(weights.linear.predict(matrix) - truth_s)
    assert error_s.mean() < 0.4 * linear_error_s.mean()
    assert np.median(error_s / truth_s) < 0.06
    covered = samples.duration_s[:, steps] <= network.predict_upper(matrix)
    assert 0.9 < covered.mean() < 0.98


def test_the_upper_quantile_covers_just_enough_of_validation(samples: Samples) -> None:
    training = Training(samples, SHORT)
    network = MlpPredictor(training.weights(training.run(training.start())))
    steps = samples.steps_in(VALIDATION)
    covered = samples.duration_s[:, steps] <= network.predict_upper(
        samples.features[steps]
    )
    assert 0.95 <= covered.mean() < 0.955


def test_a_seed_gives_the_same_network_again(samples: Samples) -> None:
    first, again = (Training(samples, SHORT) for _ in range(2))
    result = first.run(first.start())
    assert same(result, again.run(again.start()))
    other = Training(samples, dataclasses.replace(SHORT, seed=1))
    assert not same(result, other.run(other.start()))
    assert first.digest == again.digest != other.digest


def test_an_interrupted_training_ends_like_one_that_was_not(
    samples: Samples, tmp_path: pathlib.Path
) -> None:
    class Interrupted(Exception):
        pass

    training = Training(samples, SHORT)
    state = TrainingState(tmp_path / "state", training.digest)

    def stop_at_four(progress: Progress) -> None:
        if int(progress.epoch) % 2 == 0:
            state.save(progress)
        if int(progress.epoch) == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        training.run(training.start(), stop_at_four)
    again = Training(samples, SHORT)
    saved = TrainingState(tmp_path / "state", again.digest).restore(again.start())
    assert saved is not None and int(saved.epoch) == 4
    assert same(again.run(saved), training.run(training.start()))


def test_training_stops_when_nothing_gets_better(samples: Samples) -> None:
    # Steps too wild to learn much by.
    config = TrainingConfig(learning_rate=0.5, patience=3, max_epochs=50)
    training = Training(samples, config)
    result = training.run(training.start())
    assert int(result.epoch) == int(result.best_epoch) + 3 < 50
    losses = np.asarray(result.losses)[:, 1]
    assert float(result.best_loss) == np.nanmin(losses)
    assert losses[int(result.best_epoch) - 1] == float(result.best_loss)
    assert np.isnan(losses[int(result.epoch) :]).all()


def test_a_training_that_blew_up_is_refused(samples: Samples) -> None:
    config = TrainingConfig(learning_rate=1e9, patience=1, max_epochs=6)
    training = Training(samples, config)
    result = training.run(training.start())._replace(best_loss=np.float32(np.inf))
    with pytest.raises(ValueError, match=r"learning_rate=1000000000.0 is too large"):
        training.weights(result)


def test_samples_without_a_part_are_refused(samples: Samples) -> None:
    alone = dataclasses.replace(samples, split=np.zeros_like(samples.split))
    with pytest.raises(ValueError, match="no step for validation"):
        Training(alone, SHORT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": ()}, r"hidden=\[\] is not a list"),
        ({"hidden": (0,)}, r"hidden=\[0\] is not a list"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is not above 0"),
        ({"patience": -1}, "patience=-1 is not above 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 is below 0"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**change)  # type: ignore[arg-type]
