import json
import pathlib

import numpy as np
import pytest

from jserve.predictor_checkpoint import PredictorFacts
from jserve_sched import features
from jserve_sched.bucket_strategies import Continuous
from jserve_sched.cost_model import OraclePredictor
from jserve_sched.request_grid import request_grid
from jserve_sched.request_latency import (
    Bilinear,
    fit_request_latency,
    request_latency_from_json,
)
from jserve_tools.machines import GPU_COST_MODELS, gpu_cost_model
from jserve_tools.predictor_report import errors
from jserve_tools.request_training import formula, publish_requests, train_requests
from jserve_tools.samples import TRAIN, Samples, read_samples

PROFILES = pathlib.Path(__file__).parents[2] / "benchmarks"
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
    grid = request_grid(
        table,
        page_size=machine.page_size,
        num_kv_tokens=machine.num_kv_tokens,
        max_num_batched_tokens=machine.max_num_batched_tokens,
    )
    prefill, decode = grid.priced_by(OraclePredictor(machine, table.block_tokens))
    found = fit_request_latency(prefill, decode)
    for model, points, mape, worst in (
        (found.prefill, prefill, 0.1, 0.32),
        (found.decode, decode, 0.05, 0.13),
    ):
        predicted_s = model.of(points.batch, points.length)
        errs = errors(predicted_s, points.duration_s)
        assert errs["mape"] < mape and errs["r2"] > 0.96
        assert np.max(np.abs(predicted_s / points.duration_s - 1)) < worst


@pytest.mark.parametrize(
    ("profile", "prefill_mape", "decode_mape"),
    [("predictor", 0.25, 0.13), ("buckets", 0.15, 0.2)],
)
def test_a_profile_of_an_engine_gives_a_useful_latency(
    profile: str, prefill_mape: float, decode_mape: float
) -> None:
    trained = train_requests(
        read_samples(PROFILES / profile / "samples.npz"), page_size=128
    )
    assert trained.errors["prefill: held out"]["mape"] < prefill_mape
    alike = "decode step, contexts alike: held out"
    assert trained.errors[alike]["mape"] < decode_mape
    assert trained.errors[alike]["r2"] > 0.9
    assert trained.num_points["prefill: held out"] >= 9


def test_what_is_held_out_is_not_learned_from(samples: Samples) -> None:
    seconds = samples.duration_s.copy()
    seconds[:, samples.split != TRAIN] *= 3
    slower = Samples(
        features=samples.features,
        duration_s=seconds,
        split=samples.split,
        timed_features=samples.timed_features,
        timed_s=samples.timed_s,
        facts=samples.facts,
    )
    found = train_requests(slower, page_size=128)
    before = train_requests(samples, page_size=128)
    assert found.latency == before.latency
    name = "decode step: held out"
    assert found.errors[name]["mape"] > 2 * before.errors[name]["mape"]


def test_everything_is_written_and_printed(
    samples: Samples, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_requests(samples, tmp_path, MEASURED_WITH)
    out = capsys.readouterr().out
    report = json.loads(out.splitlines()[-1])
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "request_latency.json").read_text()
    assert request_latency_from_json(text).to_json() == report["latency"]
    assert json.loads(text)["measured_with"]["device_kind"] == "cpu"
    for part in ("prefill", "decode step"):
        shown = report["errors"][f"{part}: held out"]
        row = next(one for one in out.splitlines() if one.startswith(f"{part}: held"))
        assert row.split()[-1] == f"{shown['mape']:.1%}"
        assert row.split()[-2] == f"{shown['mae_ms']:.3f}ms"


def test_a_profile_without_a_kind_of_step_is_refused(samples: Samples) -> None:
    def without(is_gone: np.ndarray, facts: dict[str, object]) -> Samples:
        return Samples(
            features=samples.features[~is_gone],
            duration_s=samples.duration_s[:, ~is_gone],
            split=samples.split[~is_gone],
            timed_features=samples.timed_features,
            timed_s=samples.timed_s,
            facts=facts,
        )

    facts = dict(samples.facts)
    is_decode = features.scenarios(samples.features) == features.PURE_DECODE
    with pytest.raises(ValueError, match="no step has decodes only"):
        train_requests(without(is_decode, facts), page_size=128)
    is_prefill = features.scenarios(samples.features) == features.PURE_PREFILL
    with pytest.raises(ValueError, match="no step is a whole prefill"):
        train_requests(without(is_prefill, facts), page_size=128)
    del facts["num_kv_tokens"]
    with pytest.raises(ValueError, match="'num_kv_tokens'"):
        train_requests(without(is_decode & False, facts), page_size=128)


def test_a_formula_is_in_microseconds() -> None:
    model = Bilinear(both=1e-8, batch=0.0, length=2e-6, base=0.01)
    assert formula(model) == "1e+04 + 0 b + 2 l + 0.01 b l us"
