import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from jserve.timing.checkpoint import model_digest
from jserve_models.config import NAMED
from jserve_sched.steps import features
from jserve_sched.steps.record import StepRecord, recorded_sizes
from jserve_tools.training.samples import (
    TEST,
    TRAIN,
    VALIDATION,
    Samples,
    read_samples,
    recorded_samples,
    repeat_spread,
    split_steps,
    write_samples,
)
from tests import ROOT
from tests.fakes import make_features


def make_samples(num_steps: int = 12, num_rounds: int = 3) -> Samples:
    rng = np.random.default_rng(0)
    return Samples(
        features=rng.integers(0, 9, (num_steps, features.NUM_FEATURES)).astype(
            np.float64
        ),
        duration_s=rng.uniform(0.001, 0.1, (num_rounds, num_steps)),
        split=np.arange(num_steps, dtype=np.int8) % 3,
        timed_features=np.ones((4, features.NUM_FEATURES)),
        timed_s=np.full(4, 0.002),
        facts={"model": "toy"},
    )


def test_what_is_written_is_read(tmp_path: pathlib.Path) -> None:
    samples = make_samples()
    path = tmp_path / "new" / "samples.npz"
    write_samples(path, samples)
    found = read_samples(path)
    np.testing.assert_array_equal(found.features, samples.features)
    np.testing.assert_allclose(found.duration_s, samples.duration_s, rtol=1e-6)
    np.testing.assert_array_equal(found.split, samples.split)
    np.testing.assert_allclose(found.timed_s, samples.timed_s, rtol=1e-6)
    assert found.facts["model"] == "toy"
    assert found.steps_in(VALIDATION).tolist() == [1, 4, 7, 10]
    np.testing.assert_array_equal(found.median_s, np.median(found.duration_s, axis=0))


def test_a_file_that_is_not_samples_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "samples.npz"

    def refusal() -> str:
        with pytest.raises(ValueError, match=r"samples=.* cannot be read: ") as caught:
            read_samples(path)
        return str(caught.value)

    assert "No such file" in refusal()
    write_samples(path, make_samples(400, 40))
    content = path.read_bytes()
    with np.load(path) as file:
        old = dict(file) | {"facts": np.array(json.dumps({"format_version": 99}))}
    half = content[: len(content) // 2]
    for damaged in (half, content[:2000] + bytes(500) + content[2500:], b"hello"):
        path.write_bytes(damaged)
        refusal()
    np.savez(path, facts=np.array('{"format_version": 2}'))
    assert "'split'" in refusal()
    np.savez(path, **old)
    assert "it has version 99, not 2" in refusal()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration_s": np.ones((3, 11))}, "features have shape"),
        ({"split": np.zeros(11, np.int8)}, "not each step has a split"),
        ({"duration_s": np.ones((0, 12))}, "the samples are empty"),
        ({"timed_s": np.ones(3)}, "timed_features have shape"),
        ({"duration_s": np.zeros((3, 12))}, "not above 0"),
        ({"duration_s": np.full((3, 12), np.nan)}, "not finite"),
    ],
)
def test_bad_samples_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make_samples(), **change)


def test_each_scenario_is_split_in_equal_shares() -> None:
    third = np.arange(300) // 100  # decode, mixed, prefill
    matrix = make_features(300, NUM_DECODES=third < 2, PREFILL_TOKENS=third > 0)
    split = split_steps(matrix, np.random.default_rng(0))
    scenario = features.scenarios(matrix)
    for value in range(3):
        found = np.bincount(split[scenario == value], minlength=3)
        assert found[[TRAIN, VALIDATION, TEST]].tolist() == [55, 20, 25]


def test_the_spread_is_relative_and_robust_to_outliers() -> None:
    repeats = np.array([[1.0, 10.0], [1.1, 10.0], [0.9, 10.0], [1.1, 10.0], [9.0, 9.0]])
    assert repeat_spread(repeats) == pytest.approx([0.0, 0.0], abs=0.1)
    assert repeat_spread(repeats[:3])[0] == pytest.approx(0.1)


@pytest.mark.parametrize("study", ["predictor", "buckets"])
def test_the_committed_samples_are_of_today_s_model(study: str) -> None:
    """Their predictor would be refused by every server, with reason `model`."""
    facts = read_samples(ROOT / "benchmarks" / study / "samples.npz").facts
    assert facts["predictor"]["model"] == model_digest(NAMED["tiny"])


def test_a_step_log_becomes_samples_without_steps_beside_a_compiler() -> None:
    sizes: dict[str, Any] = {
        **{"num_rows": 8, "num_blocks": 4, "used_rows": 5, "used_blocks": 3},
        **{"decode_pages": 9, "block_pages": 6, "prefill_tokens": 70},
    }
    step = StepRecord(end_s=1.0, duration_s=0.02, leaves_work=False, **sizes)
    compiling = step._replace(num_compiling=1)
    rng = np.random.default_rng(0)
    found = recorded_samples({"page_size": 128}, [step, compiling] * 20, rng)
    assert found.duration_s.tolist() == [[0.02] * 20]
    assert recorded_sizes(found.features[0]).items() <= step._asdict().items()
    matrix, duration_s, is_validation = found.for_training()
    assert len(matrix) == len(duration_s) == 15 and is_validation.sum() == 4
