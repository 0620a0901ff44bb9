import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from jserve.timing.checkpoint import (
    CheckpointError,
    PredictorFacts,
    load_checkpoint,
    save_checkpoint,
)
from jserve_sched.steps.features import NUM_FEATURES
from jserve_sched.timing.mlp import NUM_INPUTS, MlpPredictor, MlpWeights
from tests.engine_harness import FACTS
from tests.fake_predictors import flat_weights

MEASURED = dataclasses.replace(FACTS, commit="abc", report={"mae_ms": 0.5})


def some_weights(seed: int = 0, **fields: Any) -> MlpWeights:
    rng = np.random.default_rng(seed)
    layers = tuple(
        (rng.normal(size=pair).astype(np.float32), np.ones(pair[1], np.float32))
        for pair in ((NUM_INPUTS, 32), (32, 2))
    )
    fields = {"layers": layers, "mean": rng.normal(size=NUM_INPUTS)} | fields
    return dataclasses.replace(flat_weights(0.25), **fields)


def fault_of(folder: pathlib.Path, *expected: PredictorFacts) -> tuple[str, str]:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, expected=next(iter(expected), None))
    return caught.value.fault, str(caught.value)


def test_weights_and_facts_come_back_as_numpy(tmp_path: pathlib.Path) -> None:
    weights = some_weights()
    save_checkpoint(tmp_path / "new" / "one", MEASURED, some_weights(1))
    save_checkpoint(tmp_path / "new" / "one", MEASURED, weights)  # replaces that
    found, facts = load_checkpoint(tmp_path / "new" / "one", expected=MEASURED)
    assert facts == MEASURED
    assert isinstance(found.mean, np.ndarray)
    assert [kernel.dtype for kernel, _ in found.layers] == [np.float32, np.float32]
    matrix = np.random.default_rng(1).uniform(0, 100, (20, NUM_FEATURES))
    before_s = MlpPredictor(weights).quantiles(matrix)
    assert np.array_equal(MlpPredictor(found).quantiles(matrix), before_s)


def test_every_truncated_file_is_found_or_does_no_harm(tmp_path: pathlib.Path) -> None:
    save_checkpoint(tmp_path, MEASURED, some_weights())
    expected, _ = load_checkpoint(tmp_path)
    num_found = 0
    for path in sorted(tmp_path.rglob("*")):
        if path.is_dir():
            continue
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        try:
            found, facts = load_checkpoint(tmp_path)
        except CheckpointError as error:
            assert error.fault == "unreadable"
            assert "\n" not in str(error)
            num_found += 1
        else:  # a copy, or a log, that nobody reads
            assert np.array_equal(found.layers[0][0], expected.layers[0][0])
            assert facts == MEASURED
        path.write_bytes(whole)
    assert num_found >= 3, "the facts, the index and the arrays"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": np.full(NUM_INPUTS, np.nan)}, "it predicts nan s"),
        ({"scale": np.ones(3)}, "could not be broadcast"),
        ({"layers": ((np.zeros((4, 2)), np.zeros(2)),)}, "mismatch"),
        ({"layers": ((np.zeros((NUM_INPUTS, 3)), np.zeros(3)),)}, "too many values"),
    ],
)
def test_weights_that_give_no_duration_are_refused(
    tmp_path: pathlib.Path, change: dict[str, Any], message: str
) -> None:
    save_checkpoint(tmp_path, MEASURED, some_weights(**change))
    fault, text = fault_of(tmp_path)
    assert fault == "unreadable"
    assert message in text


@pytest.mark.parametrize(
    ("change", "fault", "message"),
    [
        ({"format_version": 99}, "version", "has format version 99, not 3"),
        ({"shoe_size": 43}, "unreadable", "shoe_size"),
        ({"device_kind": "TPU v6"}, "device", "device_kind 'TPU v6'"),
        ({"model": "4567"}, "model", "model '4567'; here it is '0123'"),
        ({"dtype": "bfloat16"}, "model", "dtype 'bfloat16'"),
        ({"page_size": 64}, "layout", "page_size 64; here it is 128"),
        ({"block_tokens": 8}, "layout", "block_tokens 8"),
    ],
)
def test_what_is_for_something_else_is_refused(
    tmp_path: pathlib.Path, change: dict[str, Any], fault: str, message: str
) -> None:
    assert fault_of(tmp_path, MEASURED)[0] == "missing"
    save_checkpoint(tmp_path, MEASURED, some_weights())
    path = tmp_path / "checkpoint" / "facts" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    found, text = fault_of(tmp_path, MEASURED)
    assert found == fault
    assert message in text
