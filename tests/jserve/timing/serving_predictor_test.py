"""A server plans by the predictor of its flags, or warns and plans by the table."""

import glob
import logging
import pathlib
import threading
import time
from typing import Any

import numpy as np
import pytest

from jserve.records.events import PredictorStatus
from jserve.timing.checkpoint import save_checkpoint
from jserve.timing.idle_process import IdleProcess
from jserve.timing.serving_predictor import (
    ServingPredictor,
    choose_predictor,
    full_steps,
)
from jserve_sched.buckets.table import BucketTable
from jserve_sched.steps.features import SCENARIOS, scenarios
from jserve_sched.timing.auto import AutoPredictor
from jserve_sched.timing.calibrated import CalibratedPredictor
from jserve_sched.timing.predictor import StepSample
from jserve_sched.timing.table import TablePredictor
from tests.engine_harness import FACTS, small_config
from tests.fake_predictors import flat_weights

BUCKETS = BucketTable((4, 16), (0, 4))
STEPS = full_steps(BUCKETS, page_size=128, max_pages_per_row=16)


def new_table() -> CalibratedPredictor:
    return CalibratedPredictor(TablePredictor(BUCKETS), "table")


def choose(name: str, cache: pathlib.Path | None = None) -> ServingPredictor:
    return choose_predictor(
        name,
        new_table(),
        buckets=BUCKETS,
        expected=FACTS,
        max_pages_per_row=16,
        cache=cache,
    )


def test_a_checkpoint_prices_the_steps(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, FACTS, flat_weights(0.005))
    with caplog.at_level(logging.WARNING):
        serving = choose(str(tmp_path))
    assert not caplog.records
    assert serving.status() == PredictorStatus(name="mlp")
    assert serving.predictor.predict(STEPS) == pytest.approx(0.005)


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


def test_absurd_weights_are_refused(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, FACTS, flat_weights(1e3))
    serving = choose(str(tmp_path))
    assert "is far from what was timed here" in caplog.text
    assert serving.status() == PredictorStatus(name="table", fallback="wrong")


def test_auto_keeps_a_network_that_serves_and_begins_with_it(
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(process: IdleProcess, function: str, *arguments: Any) -> Any:
        if function == "jserve.timing.checkpoint:save_checkpoint":
            return save_checkpoint(*arguments)
        assert function == "jserve.timing.training:train_network"
        assert len(arguments[0]) == len(arguments[1]) > len(STEPS)
        return flat_weights(0.004), None

    monkeypatch.setattr(IdleProcess, "run", run)
    serving = choose("auto", tmp_path)
    assert isinstance(serving.predictor, AutoPredictor)
    kept = tmp_path / "predictor_*" / "checkpoint"
    deadline_s = time.monotonic() + 60.0
    while not glob.glob(str(kept)) and time.monotonic() < deadline_s:
        for row in STEPS:  # of equal times, unlike the table's
            serving.predictor.update(StepSample(row, 0.004))
    serving.stop()
    assert serving.status().num_refits >= 1
    kinds = serving.status().kinds
    assert "mlp" in {errors["predictor"] for errors in kinds.values()}
    again = choose("auto", tmp_path)
    assert again.status() == PredictorStatus(name="auto")
    assert again.predictor.predict(STEPS) == pytest.approx(0.004)
    again.stop()
    # A damaged one.
    (folder,) = tmp_path.glob("predictor_*")
    for path in (folder / "checkpoint").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    caplog.clear()
    damaged = choose("auto", tmp_path)
    assert len(caplog.records) == 1
    assert damaged.status() == PredictorStatus(name="auto", fallback="unreadable")
    damaged.stop()


def test_no_name_is_refused() -> None:
    with pytest.raises(ValueError, match="predictor='' is not table, auto, linear"):
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
