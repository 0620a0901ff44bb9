"""Other conditions are named, and end in no verdict where they decide it."""

from typing import Any

import pytest

from jserve_tools.report_comparison import compare_reports

YARDSTICK = {"prompt_tokens": [8, 64], "ttft_s": [0.1, 0.4], "step_s": 0.01}


def run(num_met: int = 100, **fields: Any) -> dict[str, Any]:
    numbers = {"num_requests": 200, "num_violations": 200 - num_met}
    return {"policy": "fcfs", "load": 0.9, "seed": 0, "qps": 2.0, **numbers, **fields}


def report(*runs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"schema_version": 2, "runs": list(runs), **fields}


def facts(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, ...]:
    return compare_reports(report(run(), **old), report(run(), **new)).facts


def mark(old: dict[str, Any], new: dict[str, Any], metric: str = "attainment") -> str:
    values = compare_reports(old, new).values
    return next(one.mark for one in values if one.metric == metric)


def test_settings_are_named_key_by_key() -> None:
    old = {"server": {"engine": {"max_num_seqs": 32, "policy": "fcfs", "page_size": 8}}}
    new = {"server": {"engine": {"max_num_seqs": 8, "policy": "edf", "page_size": 8}}}
    assert facts(old, new) == ("server engine max_num_seqs: 32 -> 8",)
    model = {"name": "a100", "max_num_seqs": 256}
    assert facts(
        {"cost_model": model, "lag": 0, "noise": 0.0},
        {"cost_model": model | {"max_num_seqs": 64}, "lag": 1, "noise": 0.2},
    ) == ("cost_model max_num_seqs: 256 -> 64", "lag: 0 -> 1", "noise: 0.0 -> 0.2")


def test_measurements_are_named_beyond_two_percent() -> None:
    old = {"capacity": {"requests_per_s": 2.0}, "yardstick": YARDSTICK}
    near = {
        "capacity": {"requests_per_s": 2.03},
        "yardstick": YARDSTICK | {"ttft_s": [0.101, 0.4]},
    }
    assert facts(old, near) == ()
    far = {
        "capacity": {"requests_per_s": 1.0},
        "yardstick": YARDSTICK | {"ttft_s": [0.1, 0.6]},
    }
    assert facts(old, far)[:2] == (
        "yardstick ttft_s: [0.1, 0.4] -> [0.1, 0.6]",
        "capacity requests_per_s: 2.0 -> 1.0",
    )
    assert facts(old, {}) == ()  # not told is not different


@pytest.mark.parametrize(("qps", "wanted"), [(2.03, "+"), (1.9, "?")])
def test_other_rates_have_no_verdict(qps: float, wanted: str) -> None:
    old = report(run(num_programs=30))
    new = report(run(180, qps=qps, num_programs=20))
    assert mark(old, new) == wanted
    assert mark(old, new, "num_programs") == "+"  # whatever was sent
    lines = compare_reports(old, new).facts
    assert lines == (
        ()
        if wanted == "+"
        else (f"no verdict on fcfs / pow2 @ 0.9x, which differs: qps 2.0 -> {qps}",)
    )


def test_other_promises_have_no_verdict() -> None:
    def promising(ttft_s: float) -> list[dict[str, Any]]:
        rows = [{"service_class": "a", "slo": {"ttft_s": ttft_s}, "ttft_s": 1.0}]
        return [*rows, {"service_class": "b", "slo": {}, "ttft_s": 1.0}]

    old = report(run(requests=promising(2.0)), yardstick=YARDSTICK)
    slower = YARDSTICK | {"step_s": 0.05}
    # What the requests were promised counts, not what relative ones would be.
    assert (
        mark(old, report(run(180, requests=promising(2.01)), yardstick=slower)) == "+"
    )
    new = report(run(180, requests=promising(2.5)), yardstick=YARDSTICK)
    assert mark(old, new) == "?"
    assert compare_reports(old, new).facts == (
        "no verdict on fcfs / pow2 @ 0.9x, which differs: a ttft_s 2.0 -> 2.5",
    )


def test_without_requests_the_reports_promises_count() -> None:
    def told(**fields: Any) -> dict[str, Any]:
        return report(run(180), **fields)

    old = report(run(), yardstick=YARDSTICK)
    assert mark(old, told(yardstick=YARDSTICK | {"step_s": 0.0101})) == "+"
    assert mark(old, told(yardstick=YARDSTICK | {"step_s": 0.02})) == "?"
    classes = [{"name": "a", "ttft_s": 1.0}]
    old = report(run(), workload={"service_classes": classes})
    other = [{"name": "a", "ttft_s": 2.0}]
    assert mark(old, told(workload={"service_classes": classes})) == "+"
    assert mark(old, told(workload={"service_classes": other})) == "?"


def test_a_goodput_under_other_promises_has_no_verdict() -> None:
    searched = {"goodput_ci95_qps": [1.9, 2.1], "goodput_qps": 2.0}
    better = {"goodput_ci95_qps": [2.9, 3.1], "goodput_qps": 3.0, "qps": 3.0}
    promises = {"a": {"ttft_s": 1.0}}
    old = report(run(**searched), workload={"promises": promises})
    same = report(run(**better), workload={"promises": promises})
    assert mark(old, same, "goodput_qps") == "+"
    laxer = report(run(**better), workload={"promises": {"a": {"ttft_s": 9.0}}})
    assert mark(old, laxer, "goodput_qps") == "?"
