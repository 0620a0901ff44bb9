"""The comparison of bucket strategies on devices: its intervals and its results."""

import json

import pytest

from benchmarks.buckets.devices import compare
from tests import ROOT

FOLDER = ROOT / "benchmarks" / "buckets" / "devices"


def run(strategy: str, seed: int, device_s: float, attainment: float) -> dict:
    return {
        **{"device": "h200", "trace": "conv", "policy": "fcfs"},
        **{"bucket_strategy": strategy, "seed": seed, "num_programs": 43},
        **{"attainment": attainment, "pad_share_time": 0.1},
        **{"device_s": device_s, "e2e_s": 1.0},
    }


def test_a_strategy_is_compared_with_pow2_of_the_same_seed() -> None:
    runs = [
        run(strategy, seed, factor * (seed + 1), share)
        for strategy, factors, share in (
            ("pow2", (1.0, 1.0, 1.0), 0.9),
            ("fitted", (0.9, 0.8, 0.7), 0.95),
        )
        for seed, factor in enumerate(factors)
    ]
    pow2, fitted = compare.compare(runs)
    assert pow2["differences"]["device_s"] == {"mean": 0, "low": 0, "high": 0}
    change = fitted["differences"]["device_s"]
    half = 4.302653 * 0.1 / 3**0.5  # Student's t, of three seeds that scatter by 0.1
    assert change["mean"] == pytest.approx(-0.2)
    assert change["high"] - change["low"] == pytest.approx(2 * half)
    assert fitted["differences"]["attainment"]["mean"] == pytest.approx(0.05)


def test_the_committed_table_is_that_of_the_committed_runs() -> None:
    document = json.loads((FOLDER / "report.json").read_text())
    cells = compare.compare(document["runs"])
    assert f"{compare.table(cells)}\n" == (FOLDER / "table.md").read_text()
    assert len(document["runs"]) == 2 * 2 * 2 * 4 * 3
