import numpy as np
import pytest

from jserve.timing.training import train_network
from jserve_sched.steps import features
from jserve_sched.timing.mlp import MlpPredictor, physics_s
from jserve_tools.training.samples import TEST, VALIDATION, Samples, split_steps
from tests.fakes import make_features


def staircase_s(matrix: np.ndarray) -> np.ndarray:
    """A device that pays for compiled buckets and the pages that are read."""
    rows, blocks = matrix[:, features.NUM_ROWS], matrix[:, features.NUM_BLOCKS]
    pages = matrix[:, features.DECODE_PAGES] + 12 * matrix[:, features.BLOCK_PAGES]
    return 1e-3 + 5e-5 * rows + 1e-3 * blocks**1.5 + 2e-5 * pages


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


def test_a_staircase_is_learned_where_the_physics_fail(samples: Samples) -> None:
    weights, _ = train_network(*samples.for_training())
    network = MlpPredictor(weights)

    def covered(part: int) -> float:
        steps = samples.steps_in(part)
        upper_s = network.quantiles(samples.features[steps])[1]
        return float(np.mean(samples.duration_s[:, steps] <= upper_s))

    matrix = samples.features[samples.steps_in(TEST)]
    truth_s = staircase_s(matrix)
    error_s = np.abs(network.predict(matrix) - truth_s)
    plain_s = physics_s(weights.cost_s, matrix)
    assert error_s.mean() < 0.6 * np.abs(plain_s - truth_s).mean()
    assert np.median(error_s / truth_s) < 0.06
    assert 0.9 < covered(TEST) < 0.98
    assert abs(covered(VALIDATION) - 0.95) < 0.005, "just enough"


def test_training_stops_when_nothing_gets_better(samples: Samples) -> None:
    # Steps too wild to learn much by.
    _, epochs = train_network(
        *samples.for_training(), learning_rate=0.5, patience=3, max_epochs=50
    )
    assert epochs["num_epochs"] == epochs["best_epoch"] + 3 < 50


def test_what_cannot_be_trained_is_refused(samples: Samples) -> None:
    matrix, duration_s, is_validation = samples.for_training()
    with pytest.raises(ValueError, match=r"learning_rate=1e\+30 is too large"):
        train_network(matrix, duration_s, is_validation, learning_rate=1e30, patience=1)
    alone = np.zeros_like(is_validation)
    with pytest.raises(ValueError, match="no step for training or for validation"):
        train_network(matrix, duration_s, alone)
