"""Differences get a mark only where they are more than noise."""

import re
from typing import Any

import numpy as np
import pytest

from jserve_tools.reporting.cells import cells
from jserve_tools.reporting.comparison import comparison
from jserve_tools.reporting.metrics import difference_of, metrics
from tests.fake_report import small_report as report
from tests.fake_report import small_run as run


def compare(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[str]]:
    """Returns the columns from "old" on of each metric's line."""
    old, new = (one if "runs" in one else report(one) for one in (old, new))
    lines = [re.split(r"\s{2,}", one) for one in comparison(old, new).splitlines()]
    return {line[1]: line[2:] for line in lines if len(line) == 7}


def test_newcombes_own_example() -> None:
    # Statistics in Medicine 17 (1998), table II, method 10: 56/70 - 48/80.
    (before,), (after,) = cells(report(run(48, 80))), cells(report(run(56, 70)))
    (share,) = metrics([before])
    found = difference_of(share, before, after)
    assert found[1:] == pytest.approx((0.0524, 0.3339), abs=5e-5)


@pytest.mark.parametrize(
    ("num_attained", "mark"),
    [(180, "="), (184, "="), (176, "="), (198, "+"), (150, "-")],
)
def test_attainment_is_marked_beyond_noise(num_attained: int, mark: str) -> None:
    assert compare(run(180), run(num_attained))["attained"][-1] == mark


def test_classes_are_compared_where_there_are_several() -> None:
    old, new = (
        run(by_class={"lax": run(90, 100), "tight": run(num_attained, 100)})
        for num_attained in (50, 90)
    )
    found = compare(old, new)
    assert found["attained, lax"][-1] == "=" and found["attained, tight"][-1] == "+"
    only = run(by_class={"one": run()})
    assert "attained, one" not in compare(only, only)


def test_percentiles_are_resampled_from_requests() -> None:
    def measured(seed: int, scale: float) -> dict[str, Any]:
        times = np.random.default_rng(seed).lognormal(0, 0.5, 300) * scale
        return run(requests=[*({"ttft_s": float(one)} for one in times), {}])

    slower = compare(measured(0, 1.0), measured(1, 1.4))
    faster = compare(measured(0, 1.4), measured(1, 1.0))
    same = compare(measured(0, 1.0), measured(1, 1.0))
    marks = [found["TTFT p50"][-1] for found in (slower, faster, same)]
    assert marks == ["-", "+", "="] and same["TTFT p99"][-1] == "="
    assert compare(measured(0, 1.0), measured(1, 1.4)) == slower  # draws are seeded


@pytest.mark.parametrize(
    ("old", "new", "mark"),
    [
        ((800, 810), (900, 905), "+"),
        ((800, 900), (790, 920), "="),
        ((800, 800), (900, 901), "+"),
        ((800,), (800,), "="),
        ((800,), (900,), "?"),
    ],
)
def test_means_of_turns_are_judged_and_single_runs_are_not(
    old: tuple[float, ...], new: tuple[float, ...], mark: str
) -> None:
    before, after = (
        report(*(run(output_tokens_per_s=rate) for rate in rates))
        for rates in (old, new)
    )
    assert compare(before, after)["output tokens"][-1] == mark


def test_counts_are_exact_and_fewer_is_better() -> None:
    old = report(*[run(num_programs=30, num_compiles_after_warmup=0)] * 2)
    new = report(run(num_programs=20, num_compiles_after_warmup=1), run())
    found = compare(old, new)
    assert found["programs"][-1] == "+"
    assert found["compiled after warm-up"][-1] == "-"
    assert compare(old, old)["programs"][-1] == "="


def test_goodput_goes_by_its_own_interval_and_not_by_the_rate() -> None:
    def searched(qps: float, spread: float) -> dict[str, Any]:
        ends = [qps - spread, qps + spread]
        return run(goodput_qps=qps, qps=qps, goodput_ci95_qps=ends)

    assert compare(searched(2, 0.1), searched(3, 0.1))["goodput"][-1] == "+"
    assert compare(searched(3, 0.1), searched(2, 0.1))["goodput"][-1] == "-"
    found = compare(searched(2, 1.0), searched(3, 0.8))
    assert found["goodput"][-1] == "=" and "attained" not in found
    one_seed = run(goodput_qps=2, qps=2)
    assert compare(one_seed, searched(3, 0.1))["goodput"][-1] == "?"


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        (("device",), "cpu", "gpu"),
        (("workload", "trace"), "a.csv", "b.csv"),
        (("workload", "service_classes"), [{"ttft_s": 1}], [{"ttft_s": 2}]),
    ],
)
def test_other_conditions_are_refused_in_one_line(
    path: tuple[str, ...], old: Any, new: Any
) -> None:
    def measured_with(value: Any) -> dict[str, Any]:
        nested = {path[0]: {path[1]: value} if len(path) > 1 else value}
        return report(run()) | nested

    text = comparison(measured_with(old), measured_with(new))
    assert text.startswith(f"cannot be compared: {' '.join(path)} ")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("fields", "is_judged"),
    [
        ({"qps": 2.02}, True),
        ({"qps": 2.1}, False),
        ({"yardstick": {"ttft_s": [0.1, 0.201]}}, True),
        ({"yardstick": {"ttft_s": [0.1, 0.3]}}, False),
        ({"workload": {"slos": {"a": {"ttft_s": 9.0}}}}, False),
    ],
)
def test_another_rate_or_objective_has_no_verdict(
    fields: dict[str, Any], is_judged: bool
) -> None:
    same = {"yardstick": {"ttft_s": [0.1, 0.2]}, "workload": {"slos": {}}}
    old = report(run(), **same)
    new = report(run(20, qps=fields.get("qps", 2.0)), **(same | fields))
    text = comparison(old, new)
    assert compare(old, new)["attained"][-1] == ("-" if is_judged else "?")
    assert ("no verdict on fcfs / pow2 @ 0.9x" in text) != is_judged


def test_only_equal_settings_and_seeds_meet_and_others_are_named() -> None:
    old = report(run(), run(policy="c"), commit="a")
    text = comparison(old, report(run(), run(seed=1, load=1.2), commit="b"))
    assert text.startswith('what differs: commit "a" -> "b"\n')
    assert text.endswith(
        "only in the old report: c / pow2 @ 0.9x, seeds 0\n"
        "only in the new report: fcfs / pow2 @ 1.2x, seeds 1"
    )
    assert "no cell in common" in comparison(report(run()), report(run(policy="b")))


def test_the_table_shows_units_and_signs() -> None:
    old = run(180, num_programs=30, ttft_s={"p50": 1.5})
    found = compare(old, run(198, num_programs=36, ttft_s={"p50": 0.25}))
    assert found["attained"][:3] == ["90.0%", "99.0%", "+9.0%"]
    assert found["TTFT p50"] == ["1.50s", "250.0ms", "-1.25s", "-", "?"]
    assert found["programs"] == ["30", "36", "+6", "+6 to +6", "-"]
