"""The one judge of predictors, what it judges, and its pictures."""

import numpy as np
import pytest

from jserve_tools.training.plots import predictor_png
from jserve_tools.training.report import errors, errors_table, judge
from tests.fakes import make_features


def test_errors_of_known_predictions() -> None:
    measured_s = np.array([0.001, 0.002, 0.003])
    found = errors(measured_s + np.array([0.001, 0.0, -0.001]), measured_s)
    assert found["mae_ms"] == pytest.approx(2 / 3)
    assert found["rmse_ms"] == pytest.approx((2 / 3) ** 0.5)
    assert found["median_ape"] == pytest.approx(1 / 3)
    assert found["mape"] == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert found["r2"] == pytest.approx(0.0)
    assert errors(measured_s, measured_s)["r2"] == 1.0
    assert "r2" not in errors(np.ones(2), np.ones(2))


def test_predictors_are_judged_by_scenario() -> None:
    rng = np.random.default_rng(0)
    is_prefill = np.arange(400) % 2
    matrix = make_features(400, NUM_DECODES=1 - is_prefill, PREFILL_TOKENS=is_prefill)
    truth_s = np.geomspace(0.001, 0.1, 400)
    duration_s = truth_s * np.exp(rng.normal(0, 0.05, (9, 400)))
    upper_s = truth_s * np.exp(1.645 * 0.05)
    report = judge(
        {"linear": truth_s * 1.5, "mlp": truth_s * 1.01},
        {"mlp": upper_s},
        matrix=matrix,
        duration_s=duration_s,
    )
    assert list(report) == ["all", "decode", "prefill"]
    found = report["all"]["predictors"]["mlp"]
    assert found["against_median"]["r2"] > 0.99
    assert found["against_median"]["median_ape"] == pytest.approx(0.015, abs=0.01)
    assert found["p95_coverage"]["share"] == pytest.approx(0.95, abs=0.01)
    assert report["all"]["num_samples"] == 3600
    text = errors_table(report)
    assert "all (400)" in text and "prefill (200)" in text
    assert text.count("mlp") == 3


def test_a_picture_of_few_steps_is_drawn() -> None:
    # One scenario alone, and programs without a step.
    sizes = {"NUM_ROWS": (2, 4, 4), "NUM_BLOCKS": (0, 0, 1)}
    duration_s = np.array([[0.001, 0.002, 0.004], [0.0011, 0.0019, 0.005]])
    median_s = np.median(duration_s, axis=0)
    predictions = {
        "predicted_s": {"linear": median_s * 1.5, "mlp": median_s},
        "upper_s": {"mlp": median_s * 1.1},
        "matrix": make_features(3, NUM_DECODES=1, **sizes),
        "duration_s": duration_s,
    }
    picture = predictor_png(predictions, title="three steps")
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
