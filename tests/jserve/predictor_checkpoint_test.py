import dataclasses
import json
import pathlib
import types

import jax
import numpy as np
import pytest

from jserve.predictor_checkpoint import (
    CheckpointError,
    PredictorFacts,
    load_checkpoint,
    save_checkpoint,
)
from jserve_sched.features import NUM_FEATURES
from jserve_sched.linear_predictor import LinearModel
from jserve_sched.mlp_predictor import NUM_INPUTS, MlpPredictor, MlpWeights

FACTS = PredictorFacts(
    platform="cpu",
    device_kind="cpu",
    model="0123",
    dtype="float32",
    page_size=128,
    block_tokens=32,
    commit="abc",
    report={"mae_ms": 0.5},
)


def some_weights(seed: int = 0) -> MlpWeights:
    rng = np.random.default_rng(seed)
    return MlpWeights(
        linear=LinearModel(
            coefficients=rng.uniform(size=(4, 8)),
            has_expert=np.array([True, False, True]),
        ),
        mean=rng.normal(size=NUM_INPUTS),
        scale=rng.uniform(1, 2, NUM_INPUTS),
        low=np.full(NUM_INPUTS, -3.0),
        high=np.full(NUM_INPUTS, 3.0),
        layers=(
            (
                rng.normal(size=(NUM_INPUTS, 32)).astype(np.float32),
                np.zeros(32, np.float32),
            ),
            (rng.normal(size=(32, 2)).astype(np.float32), np.ones(2, np.float32)),
        ),
    )


def fault_of(
    folder: pathlib.Path, expected: PredictorFacts | None = None
) -> tuple[str, str]:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, expected=expected)
    return caught.value.fault, str(caught.value)


def test_weights_and_facts_come_back_as_numpy(tmp_path: pathlib.Path) -> None:
    weights = some_weights()
    save_checkpoint(tmp_path / "new" / "one", weights, FACTS)
    found, facts = load_checkpoint(tmp_path / "new" / "one", expected=FACTS)
    assert facts == FACTS
    assert isinstance(found.mean, np.ndarray)
    assert [kernel.dtype for kernel, _ in found.layers] == [np.float32, np.float32]
    matrix = np.random.default_rng(1).uniform(0, 100, (20, NUM_FEATURES))
    for ask in ("predict", "predict_upper"):
        before = getattr(MlpPredictor(weights), ask)(matrix)
        assert np.array_equal(getattr(MlpPredictor(found), ask)(matrix), before)


def test_saving_again_replaces(tmp_path: pathlib.Path) -> None:
    save_checkpoint(tmp_path, some_weights(0), FACTS)
    (tmp_path / "training").mkdir()  # a trainer's own
    save_checkpoint(tmp_path, some_weights(1), FACTS)
    found, _ = load_checkpoint(tmp_path)
    assert np.array_equal(found.mean, some_weights(1).mean)
    assert (tmp_path / "training").is_dir()


def test_facts_are_those_of_the_device_and_the_engine() -> None:
    def facts(config: str) -> PredictorFacts:
        engine = types.SimpleNamespace(
            model=types.SimpleNamespace(config=config),
            dtype=np.dtype("float32"),
            page_size=8,
            programs=types.SimpleNamespace(table=types.SimpleNamespace(block_tokens=4)),
        )
        return PredictorFacts.of(engine)  # type: ignore[arg-type]

    assert facts("config").platform == jax.devices()[0].platform
    assert (facts("config").page_size, facts("config").block_tokens) == (8, 4)
    assert facts("config").model != facts("another").model


def test_what_is_not_there_is_missing(tmp_path: pathlib.Path) -> None:
    fault, message = fault_of(tmp_path / "none")
    assert fault == "missing"
    assert message.endswith("none' does not exist")
    fault, message = fault_of(tmp_path)
    assert fault == "missing"
    assert message.endswith("holds no facts.json")


def test_every_truncated_file_is_found_or_does_no_harm(tmp_path: pathlib.Path) -> None:
    save_checkpoint(tmp_path, some_weights(), FACTS)
    expected, _ = load_checkpoint(tmp_path)
    num_found = 0
    for path in sorted(tmp_path.rglob("*")):
        if path.is_dir():
            continue
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        try:
            found, _ = load_checkpoint(tmp_path)
        except CheckpointError as error:
            assert error.fault == "unreadable"
            assert "\n" not in str(error)
            num_found += 1
        else:  # a copy, or a log, that nobody reads
            assert np.array_equal(found.layers[0][0], expected.layers[0][0])
        path.write_bytes(whole)
    assert num_found >= 3, "the facts, the index and the arrays"


def test_weights_of_another_save_are_refused(tmp_path: pathlib.Path) -> None:
    save_checkpoint(tmp_path / "a", some_weights(0), FACTS)
    save_checkpoint(tmp_path / "b", some_weights(1), FACTS)
    (tmp_path / "a" / "facts.json").replace(tmp_path / "b" / "facts.json")
    fault, message = fault_of(tmp_path / "b")
    assert fault == "unreadable"
    assert "not those that its facts were written for" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": np.full(NUM_INPUTS, np.nan)}, "they predict nan s"),
        ({"scale": np.ones(3)}, "could not be broadcast"),
        ({"layers": ((np.zeros((4, 2)), np.zeros(2)),)}, "mismatch"),
        ({"layers": ((np.zeros((NUM_INPUTS, 3)), np.zeros(3)),)}, "too many values"),
    ],
)
def test_weights_that_give_no_duration_are_refused(
    tmp_path: pathlib.Path, change: dict[str, object], message: str
) -> None:
    broken = dataclasses.replace(some_weights(), **change)  # type: ignore[arg-type]
    save_checkpoint(tmp_path, broken, FACTS)
    fault, text = fault_of(tmp_path)
    assert fault == "unreadable"
    assert message in text


@pytest.mark.parametrize(
    ("change", "fault", "message"),
    [
        ({"format_version": 99}, "version", "format version 99; this"),
        ({"shoe_size": 43}, "unreadable", "shoe_size"),
        ({"device_kind": "TPU v6"}, "device", "device_kind 'TPU v6'"),
        ({"model": "4567"}, "model", "model '4567'; here it is '0123'"),
        ({"dtype": "bfloat16"}, "model", "dtype 'bfloat16'"),
        ({"page_size": 64}, "layout", "page_size 64; here it is 128"),
        ({"block_tokens": 8}, "layout", "block_tokens 8"),
    ],
)
def test_what_is_for_something_else_is_refused(
    tmp_path: pathlib.Path,
    change: dict[str, object],
    fault: str,
    message: str,
) -> None:
    save_checkpoint(tmp_path, some_weights(), FACTS)
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    found, text = fault_of(tmp_path, FACTS)
    assert found == fault
    assert message in text


@pytest.mark.parametrize("text", ["", "[]", "{broken", "null"])
def test_facts_that_are_none_are_refused(tmp_path: pathlib.Path, text: str) -> None:
    save_checkpoint(tmp_path, some_weights(), FACTS)
    (tmp_path / "facts.json").write_text(text)
    fault, _ = fault_of(tmp_path)
    assert fault in ("unreadable", "version")
