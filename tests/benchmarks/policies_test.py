"""The study of policies: where the pooled violations cross a share."""

import pytest

from benchmarks.policies.study import GOODPUT_LOADS, columns, goodput


def test_goodput_is_where_the_pooled_violations_cross() -> None:
    late = [1, 0, 2, *range(10, 10 * len(GOODPUT_LOADS) - 20, 10)]
    runs = [2 * [{"attainment": 1 - most / 1000}] for most in late]
    # 5 violations lie between 2 and 10, at 0.4 and 0.55.
    assert goodput(runs, 0.005) == pytest.approx(0.4 + 0.15 * 3 / 8)


def test_the_least_is_bold() -> None:
    assert columns("chat", {"fcfs": 2.0, "module.Mine": 1.04, "edf": 1.0}) == {
        ("chat", "`fcfs`"): "2.0",
        ("chat", "`Mine`"): "**1.0**",
        ("chat", "`edf`"): "**1.0**",
    }
