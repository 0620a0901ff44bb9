"""Differences get a mark only where they are more than noise."""

import dataclasses
import itertools
import re
from typing import Any

import numpy as np
import pytest

from jserve_tools.report_comparison import (
    ComparedValue,
    Comparison,
    compare_reports,
    comparison_table,
    difference_interval,
)


def run(num_met: int = 180, num_requests: int = 200, **fields: Any) -> dict[str, Any]:
    return {
        "policy": "fcfs",
        "bucket_strategy": "pow2",
        "load": 0.9,
        "seed": 0,
        "num_requests": num_requests,
        "num_violations": num_requests - num_met,
        **fields,
    }


def report(*runs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"schema_version": 2, "device": "cpu", "runs": list(runs), **fields}


def compare(old: dict[str, Any], new: dict[str, Any]) -> dict[str, ComparedValue]:
    found = compare_reports(report(old), report(new)).values
    return {one.metric: one for one in found}


def request_rows(seed: int, scale: float, num: int = 300) -> list[dict[str, float]]:
    times = np.random.default_rng(seed).lognormal(0, 0.5, num) * scale
    return [{"ttft_s": float(one), "e2e_s": 2 * float(one)} for one in times]


def test_newcombes_own_examples() -> None:
    # Statistics in Medicine 17 (1998), table II, method 10: 56/70 - 48/80, 9/10 - 3/10.
    from_wilson = compare(run(48, 80), run(56, 70))["attainment"].difference_ci95
    assert from_wilson == pytest.approx((0.0524, 0.3339), abs=5e-5)
    from_wilson = compare(run(3, 10), run(9, 10))["attainment"].difference_ci95
    assert from_wilson == pytest.approx((0.1705, 0.8090), abs=5e-5)


def test_the_interval_of_a_difference_mirrors() -> None:
    low, high = difference_interval(0.5, (0.4, 0.7), 0.8, (0.7, 0.85))
    back = difference_interval(0.8, (0.7, 0.85), 0.5, (0.4, 0.7))
    assert back == pytest.approx((-high, -low))
    assert low < 0.3 < high


@pytest.mark.parametrize(
    ("num_met", "mark"), [(180, "="), (184, "="), (176, "="), (198, "+"), (150, "-")]
)
def test_attainment_is_marked_beyond_noise(num_met: int, mark: str) -> None:
    value = compare(run(180), run(num_met))["attainment"]
    assert value.mark == mark
    assert value.difference == pytest.approx((num_met - 180) / 200)


def test_classes_are_compared_where_there_are_several() -> None:
    def with_classes(tight: int) -> dict[str, Any]:
        return run(by_class={"lax": run(90, 100), "tight": run(tight, 100)})

    found = compare(with_classes(50), with_classes(90))
    assert found["attainment.lax"].mark == "="
    assert found["attainment.tight"].mark == "+"
    only = compare(run(by_class={"one": run()}), run(by_class={"one": run()}))
    assert "attainment.one" not in only


def test_latencies_are_drawn_from_requests() -> None:
    def measured(seed: int, scale: float) -> dict[str, Any]:
        return run(requests=request_rows(seed, scale))

    slower = compare(measured(0, 1.0), measured(1, 1.4))
    faster = compare(measured(0, 1.4), measured(1, 1.0))
    same = compare(measured(0, 1.0), measured(1, 1.0))
    for metric in ("ttft_s.p50", "e2e_s.p50"):
        assert slower[metric].mark == "-" and faster[metric].mark == "+"
        assert same[metric].mark == "="
        low, high = slower[metric].difference_ci95 or (0, 0)
        assert 0 < low < slower[metric].difference < high
    assert same["ttft_s.p99"].mark == "="
    again = compare(measured(0, 1.0), measured(1, 1.4))
    assert again == slower  # draws are seeded


def test_false_alarms_are_as_rare_as_95_percent_says() -> None:
    marks = [
        compare(
            run(requests=request_rows(2 * seed, 1.0, 80)),
            run(requests=request_rows(2 * seed + 1, 1.0, 80)),
        )["ttft_s.p50"].mark
        for seed in range(30)
    ]
    assert marks.count("=") >= 26  # 28.5 are expected


def test_latencies_without_requests_have_no_verdict() -> None:
    old = run(ttft_s={"p50": 1.0, "p99": 2.0}, tbt_s={"p50": 0.1})
    new = run(ttft_s={"p50": 9.0, "p99": 2.0}, tbt_s={"p50": 0.2})
    found = compare(old, new)
    assert found["ttft_s.p50"].mark == found["tbt_s.p50"].mark == "?"
    assert found["ttft_s.p50"].difference == 8.0
    assert found["ttft_s.p99"].mark == "="
    assert "e2e_s.p50" not in found


def test_counts_are_exact_and_fewer_is_better() -> None:
    old = run(num_programs=30, num_compiles_after_warmup=0)
    new = run(num_programs=20, num_compiles_after_warmup=1)
    found = compare(old, new)
    assert found["num_programs"].mark == "+"
    assert found["num_compiles_after_warmup"].mark == "-"
    assert compare(old, old)["num_programs"].mark == "="


def test_goodput_goes_by_its_own_interval() -> None:
    def searched(qps: float, spread: float | None) -> dict[str, Any]:
        entry = run(goodput_qps=qps)
        if spread is not None:
            entry["goodput_ci95_qps"] = [qps - spread, qps + spread]
        return entry

    assert compare(searched(2, 0.1), searched(3, 0.1))["goodput_qps"].mark == "+"
    assert compare(searched(3, 0.1), searched(2, 0.1))["goodput_qps"].mark == "-"
    assert compare(searched(2, 1.0), searched(3, 0.8))["goodput_qps"].mark == "="
    found = compare(searched(2, None), searched(3, 0.1))
    assert found["goodput_qps"].mark == "?"
    assert "attainment" not in found  # rates differ


def test_only_equal_settings_and_seeds_meet() -> None:
    settings = [
        run(policy=policy, load=load)
        for policy, load in itertools.product("ab", (1, 2))
    ]
    found = compare_reports(
        report(*settings, run(policy="c")), report(*settings[1:], run(seed=1))
    )
    assert {one.cell for one in found.values} == {
        "a / pow2 @ 2x",
        "b / pow2 @ 1x",
        "b / pow2 @ 2x",
    }
    assert found.only_old == ("a / pow2 @ 1x, seed 0", "c / pow2 @ 0.9x, seed 0")
    assert found.only_new == ("fcfs / pow2 @ 0.9x, seed 1",)


def test_turns_are_pooled() -> None:
    old = report(run(80, 100), run(90, 100))
    new = report(run(95, 100), run(99, 100), run(97, 100))
    (value,) = compare_reports(old, new).values
    assert (value.old, value.new, value.mark) == (0.85, 0.97, "+")


def test_facts_that_differ_come_first() -> None:
    old = report(run(), commit="a", machine={"processor": "x86_64", "num_cpus": 2})
    new = report(run(), commit="b", machine={"processor": "x86_64", "num_cpus": 8})
    new["server"] = {"model": "tiny"}
    found = compare_reports(old, new)
    assert found.facts == (
        "not the same machine: machine num_cpus: 2 -> 8",
        "commit: a -> b",
        "server model: None -> tiny",
    )
    assert compare_reports(old, old).facts == ()
    assert comparison_table(found).splitlines()[:3] == list(found.facts)


def test_the_table_shows_units_signs_and_marks() -> None:
    old = run(180, num_programs=30, ttft_s={"p50": 1.5}, output_tokens_per_s=800.0)
    new = run(198, num_programs=36, ttft_s={"p50": 0.25}, output_tokens_per_s=900.0)
    lines = comparison_table(compare_reports(report(old), report(new))).splitlines()
    rows = [re.split(r"\s{2,}", line)[1:] for line in lines[2:-1]]
    cells = {metric: texts for metric, *texts in rows}
    assert cells["attainment"][:3] == ["90.0%", "99.0%", "+9.0%"]
    assert cells["attainment"][-1] == "+"
    assert cells["ttft_s.p50"] == ["1.50s", "250.0ms", "-1.25s", "-", "?"]
    assert cells["num_programs"] == ["30", "36", "+6", "-", "-"]
    assert cells["output_tokens_per_s"] == ["800/s", "900/s", "+100/s", "-", "?"]


def test_reports_with_nothing_in_common() -> None:
    found = compare_reports(report(run(policy="a")), report(run(policy="b")))
    assert found == Comparison(
        facts=(),
        values=(),
        only_old=("a / pow2 @ 0.9x, seed 0",),
        only_new=("b / pow2 @ 0.9x, seed 0",),
    )
    text = comparison_table(found)
    assert "no cell in common" in text and "only in the old report: a" in text


def test_schemas_one_and_two_meet_and_others_are_refused_by_side() -> None:
    first = report(run()) | {"schema_version": 1}
    assert compare_reports(first, report(run())).values
    with pytest.raises(ValueError, match="the old report: schema_version is 7"):
        compare_reports(report(run()) | {"schema_version": 7}, report(run()))
    with pytest.raises(ValueError, match="the new report: schema_version is None"):
        compare_reports(report(run()), {"runs": [run()]})


def test_a_comparison_can_be_written_as_json() -> None:
    found = compare_reports(report(run()), report(run(198)))
    assert dataclasses.asdict(found)["values"][0]["mark"] == "+"


def test_times_between_tokens_are_judged_by_requests() -> None:
    def measured(seed: int, scale: float) -> dict[str, Any]:
        rows = [{"tbt_p99_s": one["ttft_s"]} for one in request_rows(seed, scale)]
        return run(requests=[*rows, {"ttft_s": 1.0}])  # the last has one token

    slower = compare(measured(0, 1.0), measured(1, 1.4))
    assert slower["tbt_p99_s.p50"].mark == "-"
    assert compare(measured(0, 1.0), measured(1, 1.0))["tbt_p99_s.p50"].mark == "="


def test_compiles_of_turns_add_up() -> None:
    old = report(*[run(num_compiles_after_warmup=0)] * 3)
    counts = [run(num_compiles_after_warmup=count) for count in (0, 1, 0)]
    found = {one.metric: one for one in compare_reports(old, report(*counts)).values}[
        "num_compiles_after_warmup"
    ]
    assert (found.old, found.new, found.mark) == (0, 1, "-")


def test_a_cold_start_is_not_held_against_a_warm_one() -> None:
    def started(warm_s: float, source: str) -> dict[str, Any]:
        return run(start_up={"warm_s": warm_s, "programs": [{"source": source}]})

    cold, again = started(9.0, "compiled"), started(1.0, "stored")
    assert not [one for one in compare(cold, again) if one.startswith("start_up")]
    assert compare(cold, cold)["start_up_cold.warm_s"].mark == "="
    assert compare(again, again)["start_up.warm_s"].old == 1.0
