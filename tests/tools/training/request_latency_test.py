import dataclasses
import json
import pathlib

import numpy as np
import pytest

from jserve.timing.checkpoint import PredictorFacts
from jserve_sched.buckets.strategies import Continuous
from jserve_sched.simulation.cost_model import OraclePredictor
from jserve_sched.steps import features
from jserve_sched.timing.request_latency import (
    fit_bilinear,
    priced_points,
    request_latency_from_json,
)
from jserve_tools.gpu_profiles.machines import GPU_COST_MODELS, gpu_cost_model
from jserve_tools.training.report import errors
from jserve_tools.training.request_latency import publish_requests, train_requests
from jserve_tools.training.samples import TRAIN, Samples, read_samples
from tests import ROOT

PROFILES = ROOT / "benchmarks"
MEASURED_WITH = PredictorFacts(
    platform="cpu",
    device_kind="cpu",
    model="m",
    dtype="float32",
    page_size=128,
    block_tokens=32,
)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return read_samples(PROFILES / "predictor" / "samples.npz")


@pytest.mark.parametrize("name", GPU_COST_MODELS)
def test_the_form_is_near_every_gpu_over_the_whole_box(name: str) -> None:
    machine = gpu_cost_model(name)
    table = Continuous().table(
        max_num_seqs=machine.max_num_seqs,
        max_num_batched_tokens=machine.max_num_batched_tokens,
        block_tokens=1,
    )
    prefill, decode = priced_points(
        OraclePredictor(machine, table.block_tokens),
        table,
        page_size=machine.page_size,
        num_kv_tokens=machine.num_kv_tokens,
        max_num_batched_tokens=machine.max_num_batched_tokens,
    )
    for points, mape, worst in ((prefill, 0.1, 0.32), (decode, 0.05, 0.13)):
        model = fit_bilinear(points)
        predicted_s = model.of(points.batch, points.length)
        errs = errors(predicted_s, points.duration_s)
        assert errs["mape"] < mape and errs["r2"] > 0.96
        assert np.max(np.abs(predicted_s / points.duration_s - 1)) < worst


def test_a_profile_of_an_engine_gives_a_useful_latency(samples: Samples) -> None:
    _, found = train_requests(samples, page_size=128)
    assert found["prefill"]["mape"] < 0.25
    assert found["decode step"]["mape"] < 0.25
    assert found["prefill"]["num_points"] >= 9


def test_what_is_held_out_is_not_learned_from(samples: Samples) -> None:
    seconds = samples.duration_s.copy()
    seconds[:, samples.split != TRAIN] *= 3
    slower = dataclasses.replace(samples, duration_s=seconds)
    latency, found = train_requests(slower, page_size=128)
    latency_before, before = train_requests(samples, page_size=128)
    assert latency == latency_before
    name = "decode step"
    assert found[name]["mape"] > 2 * before[name]["mape"]


def test_what_is_printed_is_written(
    samples: Samples, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_requests(samples, tmp_path, MEASURED_WITH)
    out = capsys.readouterr().out
    report = json.loads(out.splitlines()[-1])
    text = (tmp_path / "request_latency.json").read_text()
    assert json.loads(text) == report
    assert report["measured_with"]["device_kind"] == "cpu"
    assert request_latency_from_json(text).decode.base == report["decode"]["base"]
    for part in ("prefill", "decode step"):
        shown = report["errors"][part]
        row = next(one for one in out.splitlines() if one.startswith(f"{part}  "))
        assert row.split()[-2:] == [f"{shown['mae_ms']:.3f}ms", f"{shown['mape']:.1%}"]


def test_a_profile_without_a_kind_of_step_is_refused(samples: Samples) -> None:
    def without(is_gone: np.ndarray, facts: dict[str, object]) -> Samples:
        return dataclasses.replace(
            samples,
            features=samples.features[~is_gone],
            duration_s=samples.duration_s[:, ~is_gone],
            split=samples.split[~is_gone],
            facts=facts,
        )

    facts = dict(samples.facts)
    is_decode = features.scenarios(samples.features) == features.PURE_DECODE
    with pytest.raises(ValueError, match="no step is decode only"):
        train_requests(without(is_decode, facts), page_size=128)
    is_prefill = features.scenarios(samples.features) == features.PURE_PREFILL
    with pytest.raises(ValueError, match="no step is a whole prefill"):
        train_requests(without(is_prefill, facts), page_size=128)
    del facts["num_kv_tokens"]
    with pytest.raises(ValueError, match="'num_kv_tokens'"):
        train_requests(without(is_decode & False, facts), page_size=128)
