import logging
import threading
import time

import numpy as np
import pytest

from jserve.refit import Refitter
from jserve_sched.features import (
    CACHED_TOKENS,
    DECODE_CONTEXT,
    NUM_DECODES,
    NUM_FEATURES,
)
from jserve_sched.linear_predictor import LinearModel, LinearPredictor
from jserve_sched.predictor import StepSample


def decode_step(num_decodes: int) -> np.ndarray:
    row = np.zeros(NUM_FEATURES)
    row[[NUM_DECODES, CACHED_TOKENS, DECODE_CONTEXT]] = num_decodes, 100, 100
    return row


def flat_predictor(**fields: int) -> LinearPredictor:
    coefficients = np.zeros((4, 8))
    coefficients[:, 0] = 1.0
    model = LinearModel(coefficients=coefficients, has_expert=np.zeros(3, bool))
    return LinearPredictor(model, min_expert_samples=8, **fields)


def wait_for(what: threading.Event) -> None:
    assert what.wait(10.0)


def test_it_refits_in_its_own_thread_and_stops() -> None:
    predictor = flat_predictor(refit_every=32)
    swapped, threads = threading.Event(), []
    swap = predictor.swap

    def swap_and_tell(model: LinearModel) -> None:
        threads.append(threading.current_thread().name)
        swap(model)
        swapped.set()

    predictor.swap = swap_and_tell  # type: ignore[method-assign]
    refitter = Refitter(predictor, interval_s=0.001)
    refitter.start()
    for index in range(32):
        predictor.update(
            StepSample(decode_step(1 + index % 8), 0.001 * (1 + index % 8))
        )
    wait_for(swapped)
    refitter.stop()
    assert threads == ["refit"]
    assert predictor.num_refits == 1
    found = predictor.predict(np.stack([decode_step(2), decode_step(6)]))
    assert found == pytest.approx([0.002, 0.006], rel=1e-6)
    for _ in range(64):
        predictor.update(StepSample(decode_step(1), 0.001))
    time.sleep(0.02)
    assert predictor.num_refits == 1, "it has stopped"


def test_a_failing_fit_is_told_once_and_leaves_the_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    predictor = flat_predictor(refit_every=1)
    tries = threading.Semaphore(0)

    def fail() -> None:
        tries.release()
        raise ValueError("singular")

    predictor.refit = fail  # type: ignore[method-assign]
    predictor.update(StepSample(decode_step(1), 0.001))
    refitter = Refitter(predictor, interval_s=0.001)
    with caplog.at_level(logging.WARNING, logger="jserve"):
        refitter.start()
        assert all(tries.acquire(timeout=10.0) for _ in range(3))
        refitter.stop()
    assert caplog.text.count("stays as it is: singular") == 1
    assert predictor.predict(decode_step(1)[None]).tolist() == [1.0]


def test_one_that_never_started_can_be_stopped() -> None:
    Refitter(flat_predictor()).stop()
