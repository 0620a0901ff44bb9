"""The study of annealing: the requests drawn, and gains paired by draw."""

from typing import Any

import pytest

from benchmarks.annealing import study


def run(num_attained: int, total_s: float) -> dict[str, Any]:
    share = num_attained / 10
    return {
        **{"num_requests": 10, "attainment": share, "attainment_mean_tpot": share},
        "e2e_s": {"mean": total_s / 10},
    }


def test_half_of_the_requests_are_of_either_kind() -> None:
    trace = study.draw("azure", 20, seed=3)
    kinds = [line.split(",")[-1] for line in trace.splitlines()[1:]]
    assert kinds.count("code") == kinds.count("chat") == 10
    assert kinds != sorted(kinds)
    assert trace == study.draw("azure", 20, seed=3) != study.draw("azure", 20, seed=4)


def test_draws_are_pooled_and_gains_paired() -> None:
    base, ours = [run(2, 100.0), run(4, 200.0)], [run(4, 50.0), run(8, 100.0)]
    assert study.measures(ours) == {
        **{"attainment, %": "60.0", "mean latency, s": "7.5", "G, 1/1000 s": "80.0"}
    }
    for name, gain in (("attainment", 2.0), ("mean latency", 0.5)):
        pair = study.column(ours, name), study.column(base, name)
        assert study.ratio(*pair) == pytest.approx((gain, gain, gain))


def test_claims_name_the_best_cell() -> None:
    found = {
        (("azure", number, 1), policy): [run(num_attained, total_s)]
        for number, more in ((10, 0), (20, 2))
        for policy, num_attained, total_s in (
            ("fcfs", 2, 100.0),
            ("annealing", 4 + more, 50.0 + 10 * more),
        )
    }
    row = "| azure, annealing | 2.50 | 3.00 (N 20, b 1) | 0.60 | 0.50 (N 10, b 1) |"
    assert row in study.claims(found)
