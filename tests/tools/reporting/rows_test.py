"""What charts show is worked out by hand, and honest about what is noise."""

from typing import Any

import pytest

from jserve_tools.reporting import rows as report_rows
from jserve_tools.reporting.cells import cells
from jserve_tools.reporting.choice import choice, verdict
from tests.fake_report import small_report as report
from tests.fake_report import small_run


def run(policy: str, num_attained: int, **fields: Any) -> dict[str, Any]:
    return small_run(num_attained, 100, policy=policy, **fields)


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        ([run("edf", 97)], "At 0.9x edf: attained 97.0% (91.5% to 99.0%)"),
        (
            [run("fcfs", 60), run("edf", 97), run("sjf", 95)],
            "At 0.9x edf is best: attained 97.0% (91.5% to 99.0%); within noise of it: "
            "sjf",
        ),
        (
            [run("fcfs", 60), run("edf", 97)],
            "At 0.9x edf is best: attained 97.0% (91.5% to 99.0%), ahead of all others "
            "by more than noise",
        ),
        (
            [run("edf", 9, goodput_qps=2.0), run("sjf", 9, goodput_qps=2.5)],
            "sjf is best: goodput 2.5/s, from too few runs for an interval",
        ),
    ],
)
def test_the_verdict_says_what_is_best_and_what_may_be_as_good(
    runs: list[dict[str, Any]], text: str
) -> None:
    assert verdict(cells(report(*runs))) == text


def test_standing_is_given_load_by_load() -> None:
    rows = choice(cells(report(run("a", 50), run("b", 90), run("a", 90, load=1.2))))
    found = [(row["load"], row["policy"], row["standing"]) for row in rows]
    assert found == [
        *(("0.9x", "a", "behind"), ("0.9x", "b", "best"), ("1.2x", "a", "best"))
    ]


@pytest.mark.parametrize("key", ["slos", "promises"])  # the latter in older reports
def test_simulated_objectives_are_means(key: str) -> None:
    simulated = {"workload": {key: {"chat": {"ttlt_s": 3.0}}}}
    found = report_rows.objectives(simulated, [])
    assert found["chat"]["ttlt_s"] == (3, "E2E ≈ 3.00s")


def test_objectives_are_typical_seconds() -> None:
    drawn = [
        {"service_class": "a", "slo": {"ttft_s": ttft_s, "tbt_s": 0.05}}
        for ttft_s in (1.0, 2.0, 9.0)
    ]
    known = cells(report(run("x", 9, requests=drawn)))
    assert report_rows.objectives({}, known) == {
        "a": {"ttft_s": (2.0, "TTFT ≈ 2.00s"), "tbt_s": (0.05, "TBT ≤ 50.0ms")}
    }


def test_latencies_come_from_requests_or_from_the_summary() -> None:
    times = {"p50": 1.0, "p90": 2.0, "p99": 3.0}
    by_class = {"a": {"ttft_s": times, "tbt_s": times}}
    rows = report_rows.latencies({}, cells(report(run("x", 9, by_class=by_class))))
    assert [(row["latency"], row["p90_s"]) for row in rows] == [
        ("TTFT: time to the first token", 2),
        ("TBT: times between tokens, all pooled", 2),
    ]
    requests = [{"service_class": "a", "tbt_p99_s": 5.0}]
    listed = run("x", 9, by_class=by_class, requests=requests)
    found = {
        row["latency"]: row["p50_s"]
        for row in report_rows.latencies({}, cells(report(listed)))
    }
    assert found["TBT: 99th percentile of a request's times between tokens"] == 5.0
    assert len(found) == 2


def test_failures_and_their_reasons_are_counted() -> None:
    entry = {"num_requests": 50, "violations_by_cause": {"error": 1, "late_token": 4}}
    reason = {"reason": "error", "count": 1, "message": "connection reset"}
    turn = run("x", 95, by_class={"a": entry}, failures=[reason])
    known = cells(report(turn, turn))
    found = {row["cause"]: row for row in report_rows.failures(known)}
    assert found["error"]["requests"] == 2 and found["late token"]["requests"] == 8
    assert found["late token"]["percent"] == 4.0  # of all 200
    (message, _) = report_rows.messages(known)
    assert (message["message"], message["requests"]) == ("connection reset", 1)


def test_steps_fall_on_the_tokens_of_their_program() -> None:
    program = {"num_rows": 4, "num_blocks": 2, "bucket_s": 0.03, "used_tokens_mean": 50}
    known = cells(
        report(
            run("x", 9, buckets={"block_edges": [0, 2, 64], "block_tokens": 32})
            | {"steps_by_program": [program | {"num_steps": 3}]}
        )
    )
    curve = {"num_rows": 4, "tokens": [4, 68, 132], "seconds": [0.01, 0.02, 0.03]}
    rows = report_rows.staircase({"staircase": curve}, known)
    found = [(row["kind"], row["tokens"], row["step_ms"]) for row in rows]
    assert found == [
        *(("curve", 4, 10.0), ("curve", 68, 20.0), ("curve", 132, 30.0)),
        *(("edge", 4, 10.0), ("edge", 68, 20.0)),  # 64 blocks are off the curve
        ("ran", 68, 30.0),
    ]
    assert rows[-1]["steps"] == 3
    only_timed = {"staircase": curve | {"is_discrete": True, "tokens": [4, 100, 132]}}
    rows = report_rows.staircase(only_timed, known)
    assert [row["tokens"] for row in rows if row["kind"] == "edge"] == [4]
