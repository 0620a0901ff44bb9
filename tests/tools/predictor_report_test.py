import numpy as np
import pytest

from jserve_sched.buckets import BucketTable
from jserve_sched.features import (
    NUM_DECODES,
    NUM_FEATURES,
    PREFILL_TOKENS,
    uniform_features,
)
from jserve_tools.predictor_report import (
    coverage,
    errors,
    errors_table,
    evaluate,
    learned_table,
    verdicts,
    verdicts_table,
    wilson_interval,
)
from jserve_tools.samples import Samples


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


def test_an_interval_of_a_share_as_published() -> None:
    # Newcombe, Two-sided confidence intervals for the single proportion (1998).
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_coverage_counts_single_measurements() -> None:
    found = coverage(np.array([1.0, 2.0]), np.array([[1.0, 3.0], [0.5, 1.0]]))
    assert (found["share"], found["num_samples"]) == (0.75, 4)


def _evaluated(mlp_error: float) -> dict[str, object]:
    rng = np.random.default_rng(0)
    matrix = np.zeros((400, NUM_FEATURES))
    matrix[::2, NUM_DECODES] = 1
    matrix[1::2, PREFILL_TOKENS] = 1
    truth_s = np.geomspace(0.001, 0.1, 400)
    duration_s = truth_s * np.exp(rng.normal(0, 0.05, (9, 400)))
    return evaluate(
        {"linear": truth_s * 1.5, "mlp": truth_s * (1 + mlp_error)},
        {"mlp": truth_s * np.exp(1.645 * 0.05)},
        matrix=matrix,
        duration_s=duration_s,
    )


def test_a_good_network_meets_its_targets_and_a_bad_one_does_not() -> None:
    report = _evaluated(0.01)
    assert list(report) == ["all", "decode", "prefill"]
    good = verdicts(report)
    assert all(one["is_met"] for one in good.values())
    assert len(good) == 5
    bad = verdicts(_evaluated(0.4))
    assert not bad["r2"]["is_met"]
    assert not bad["median_ape_over_spread"]["is_met"]
    assert not bad["mae_below_linear"]["is_met"]
    assert bad["p95_coverage"]["is_met"]
    assert "  no" in verdicts_table(bad) and "  no" not in verdicts_table(good)
    text = errors_table(report)
    assert "all (400)" in text and "prefill (200)" in text
    assert text.count("mlp") == 3


def test_the_table_knows_the_timed_pass_and_the_training_steps() -> None:
    table = BucketTable((2,), (0, 1), 32)
    rows = np.stack(
        [
            uniform_features(
                bucket,
                decode_pages=1,
                block_pages=bool(bucket.num_blocks),
                page_size=64,
            )
            for bucket in table.buckets
        ]
    )

    def predicted_s(factor: float) -> np.ndarray:
        samples = Samples(
            features=rows,
            duration_s=np.tile([0.02 * factor, 0.01 * factor], (64, 1)),
            split=np.zeros(2, np.int8),
            timed_features=rows,
            timed_s=np.array([0.02, 0.01]),
            facts={},
        )
        return learned_table(samples, table, max_pages_per_row=4).predict(rows)

    assert predicted_s(1.0) == pytest.approx([0.02, 0.01], rel=0.01)
    assert predicted_s(1.3) == pytest.approx([0.026, 0.013], rel=0.02)
