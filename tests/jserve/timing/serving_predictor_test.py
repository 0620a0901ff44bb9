"""A server plans by the predictor of its flags, or warns and plans by the table."""

import logging
import pathlib
import threading
import time

import numpy as np
import pytest

from jserve.records.events import PredictorStatus
from jserve.timing.checkpoint import save_checkpoint
from jserve.timing.serving_predictor import (
    ServingPredictor,
    choose_predictor,
    full_steps,
)
from jserve_sched.buckets.table import BucketTable
from jserve_sched.steps.features import SCENARIOS, scenarios
from jserve_sched.timing.predictor import StepSample
from jserve_sched.timing.table import TablePredictor
from tests.engine_harness import FACTS, small_config
from tests.fake_predictors import flat_model, flat_weights

BUCKETS = BucketTable((4, 16), (0, 4))
STEPS = full_steps(BUCKETS, page_size=128, max_pages_per_row=16)


def new_table() -> TablePredictor:
    return TablePredictor(BUCKETS, max_pages_per_row=16)


def choose(name: str) -> ServingPredictor:
    return choose_predictor(
        name, new_table(), buckets=BUCKETS, expected=FACTS, max_pages_per_row=16
    )


def test_a_checkpoint_prices_the_steps(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, flat_weights(flat_model(0.25)), FACTS)
    with caplog.at_level(logging.WARNING):
        serving = choose(str(tmp_path))
    assert not caplog.records
    assert serving.status() == PredictorStatus(name="mlp")
    assert serving.predictor.predict(STEPS) == pytest.approx(0.25)


def test_a_checkpoint_that_cannot_be_used_costs_one_warning_and_the_table_serves(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        serving = choose(str(tmp_path))
    assert [one.name for one in caplog.records] == ["jserve"]
    assert str(tmp_path) in caplog.text
    assert serving.status() == PredictorStatus(name="table", fallback="missing")
    expected_s = new_table().predict(STEPS)
    assert np.array_equal(serving.predictor.predict(STEPS), expected_s)


def test_absurd_weights_are_replaced_by_the_table_and_counted(
    tmp_path: pathlib.Path,
) -> None:
    save_checkpoint(tmp_path, flat_weights(flat_model(1e6)), FACTS)
    serving = choose(str(tmp_path))
    expected_s = new_table().predict(STEPS)
    assert np.array_equal(serving.predictor.predict(STEPS), expected_s)
    assert serving.status().num_replaced == len(STEPS)


def test_no_name_is_refused() -> None:
    with pytest.raises(ValueError, match="predictor='' is not one of table, linear"):
        small_config(predictor="")


def test_linear_starts_from_full_steps_of_every_scenario() -> None:
    """The cold table is linear in tokens and pages, so x1 to x7 explain most of it."""
    assert set(scenarios(STEPS)) == set(range(len(SCENARIOS)))
    serving = choose("linear")
    assert serving.status().name == "linear"
    error = serving.predictor.predict(STEPS) / new_table().predict(STEPS) - 1.0
    assert float(np.median(np.abs(error))) < 0.15


def test_linear_is_refitted_in_a_thread_until_it_is_stopped() -> None:
    serving = choose("linear")
    started_at_s = new_table().predict(STEPS)
    for row, duration_s in zip([*STEPS] * 20, [*started_at_s] * 20, strict=True):
        serving.predictor.update(StepSample(row, 3.0 * duration_s))
    deadline_s = time.monotonic() + 20.0
    while not serving.status().num_refits and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert serving.status().num_refits
    assert "refit_0" in {one.name for one in threading.enumerate()}
    ratio = serving.predictor.predict(STEPS) / started_at_s
    assert float(np.median(ratio)) == pytest.approx(3.0, rel=0.15)
    serving.stop()
    assert "refit_0" not in {one.name for one in threading.enumerate()}
