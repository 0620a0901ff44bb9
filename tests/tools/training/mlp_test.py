import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jserve_sched.steps import features
from jserve_sched.timing.mlp import MlpPredictor
from jserve_tools.training.config import TrainingConfig
from jserve_tools.training.mlp import Progress, Training
from jserve_tools.training.samples import TEST, VALIDATION, Samples, split_steps
from tests.fakes import make_features

SHORT = TrainingConfig(max_epochs=30)


def staircase_s(matrix: np.ndarray) -> np.ndarray:
    """A device that pays for compiled buckets and the pages that are read."""
    rows, blocks = matrix[:, features.NUM_ROWS], matrix[:, features.NUM_BLOCKS]
    pages = matrix[:, features.DECODE_PAGES] + 12 * matrix[:, features.BLOCK_PAGES]
    return 1e-3 + 5e-5 * rows + 1e-3 * blocks + 2e-5 * pages


@pytest.fixture(scope="module")
def samples() -> Samples:
    rng = np.random.default_rng(0)
    rows, blocks, decode_pages, block_pages = rng.integers(
        [1, 0, 1, 1], [17, 5, 33, 33], (400, 4)
    ).T
    matrix = make_features(
        400,
        **{"NUM_ROWS": rows, "NUM_DECODES": rows, "NUM_BLOCKS": blocks},
        **{"DECODE_PAGES": rows * decode_pages, "BLOCK_PAGES": blocks * block_pages},
        **{"PREFILL_TOKENS": 32 * blocks, "DECODE_CONTEXT": 90 * rows * decode_pages},
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


@pytest.fixture(scope="module")
def whole(samples: Samples) -> Progress:
    return Training(samples, SHORT).run()


def test_a_staircase_is_learned_where_the_linear_model_fails(
    samples: Samples, whole: Progress
) -> None:
    weights = Training(samples, SHORT).weights(whole)
    network = MlpPredictor(weights)

    def covered(part: int) -> float:
        steps = samples.steps_in(part)
        upper_s = network.predict_upper(samples.features[steps])
        return float(np.mean(samples.duration_s[:, steps] <= upper_s))

    matrix = samples.features[samples.steps_in(TEST)]
    truth_s = staircase_s(matrix)
    error_s = np.abs(network.predict(matrix) - truth_s)
    linear_error_s = np.abs(weights.linear.predict(matrix) - truth_s)
    assert error_s.mean() < 0.4 * linear_error_s.mean()
    assert np.median(error_s / truth_s) < 0.06
    assert 0.9 < covered(TEST) < 0.98
    assert abs(covered(VALIDATION) - 0.95) < 0.005, "just enough"


def test_training_stops_when_nothing_gets_better(samples: Samples) -> None:
    # Steps too wild to learn much by.
    config = TrainingConfig(learning_rate=0.5, patience=3, max_epochs=50)
    result = Training(samples, config).run()
    assert int(result.epoch) == int(result.best_epoch) + 3 < 50


def test_what_cannot_be_trained_is_refused(samples: Samples, whole: Progress) -> None:
    blown_up = whole._replace(best_loss=jnp.float32(np.inf))
    with pytest.raises(ValueError, match=r"learning_rate=0.005 is too large"):
        Training(samples, SHORT).weights(blown_up)
    alone = dataclasses.replace(samples, split=np.zeros_like(samples.split))
    with pytest.raises(ValueError, match="no step for training or for validation"):
        Training(alone, SHORT)
