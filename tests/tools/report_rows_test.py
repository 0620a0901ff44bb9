"""What charts show is worked out by hand, and honest about what is noise."""

from typing import Any

import pytest

from fake_report import fake_report
from jserve_tools import report_rows
from jserve_tools.report_cells import cells
from jserve_tools.report_choice import choice, verdict


def run(policy: str, num_attained: int, **fields: Any) -> dict[str, Any]:
    return {
        "policy": policy,
        "load": 0.9,
        "num_requests": 100,
        "num_violations": 100 - num_attained,
        **fields,
    }


def report(*runs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"schema_version": 2, "runs": list(runs), **fields}


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        ([run("edf", 97)], "At 0.9x edf: 97.0 % attained (91.5 to 99.0)"),
        (
            [run("fcfs", 60), run("edf", 97), run("sjf", 95)],
            "At 0.9x edf is best: 97.0 % attained (91.5 to 99.0); within noise of it: "
            "sjf",
        ),
        (
            [run("fcfs", 60), run("edf", 97)],
            "At 0.9x edf is best: 97.0 % attained (91.5 to 99.0), ahead of all others "
            "by more than noise",
        ),
        (
            [run("fcfs", 96), run("edf", 97)],
            "At 0.9x edf leads by no more than noise: 97.0 % attained (91.5 to 99.0)",
        ),
        (
            [run("edf", 9, goodput_qps=2.0), run("sjf", 9, goodput_qps=2.5)],
            "sjf is best: 2.5 requests/s, from too few runs for an interval",
        ),
    ],
)
def test_the_verdict_says_what_is_best_and_what_may_be_as_good(
    runs: list[dict[str, Any]], text: str
) -> None:
    assert verdict(cells(report(*runs))) == text


def test_a_closed_loop_without_objectives_is_judged_by_throughput() -> None:
    runs = [
        {"policy": policy, "num_clients": 8, "num_requests": 9, "num_violations": 0}
        | {"by_class": {"best_effort": {}}, "output_tokens_per_s": rate}
        for policy, rate in (("fcfs", 800.0), ("sliding", 900.0))
    ]
    assert verdict(cells(report(*runs))).startswith(
        "At 8 clients sliding is best: 900 tokens/s"
    )


def test_standing_is_told_load_by_load() -> None:
    rows = choice(cells(report(run("a", 50), run("b", 90), run("a", 90, load=1.2))))
    found = [(row["policy"], row["load"], row["standing"]) for row in rows]
    assert found == [
        ("a", "0.9x", "behind"),
        ("b", "0.9x", "best"),
        ("a", "1.2x", "best"),
    ]
    assert [row["shade"] for row in rows] == [0.0, 1.0, 1.0]


def test_objectives_are_in_seconds_whatever_form_they_were_given_in() -> None:
    whole = fake_report()
    found = report_rows.objectives(whole, [])
    assert found["interactive"]["ttft_s"] == (
        pytest.approx(2.25),  # 15 times 0.15, between the lengths of the yardstick
        "TTFT ≈ 2.25s (15 x idle)",
    )
    assert found["interactive"]["tbt_s"] == (0.05, "TBT ≤ 50.0ms")
    assert "batch" not in found
    simulated = {"workload": {"promises": {"chat": {"ttlt_s": 3.0}}}}
    assert report_rows.objectives(simulated, [])["chat"]["ttlt_s"] == (3, "E2E ≈ 3.00s")
    drawn = [{"service_class": "a", "slo": {"ttft_s": one}} for one in (1.0, 2.0, 9.0)]
    known = cells(report(run("x", 9, requests=drawn)))
    assert report_rows.objectives({}, known)["a"]["ttft_s"] == (2.0, "TTFT ≈ 2.00s")


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


def test_failures_and_their_reasons_are_counted_over_turns() -> None:
    entry = {"num_requests": 50, "violations_by_cause": {"error": 1, "late_token": 4}}
    failed = {"violation": "error", "message": "connection reset"}
    turn = run("x", 95, by_class={"a": entry}, requests=[failed, {"ttft_s": 1.0}])
    known = cells(report(turn, turn))
    found = {row["cause"]: row for row in report_rows.failures(known)}
    assert found["error"]["requests"] == 2 and found["late token"]["requests"] == 8
    assert found["late token"]["percent"] == 4.0  # of all 200
    (message,) = report_rows.messages(known)
    assert (message["message"], message["requests"]) == ("connection reset", 2)


def test_steps_fall_on_the_tokens_of_their_program() -> None:
    program = {"num_rows": 4, "num_blocks": 2, "bucket_s": 0.01, "used_tokens_mean": 50}
    runs = [
        run("x", 9, buckets={"block_edges": [0, 2, 64], "block_tokens": 32})
        | {"steps_by_program": [program | {"num_steps": count, "bucket_s": seconds}]}
        for count, seconds in ((1, 0.01), (3, 0.03))
    ]
    curve = {"num_rows": 4, "tokens": [4, 68, 132], "seconds": [0.01, 0.02, 0.03]}
    rows = report_rows.staircase({"staircase": curve}, cells(report(*runs)))
    found = {
        kind: [(row["tokens"], row["step_ms"]) for row in rows if row["kind"] == kind]
        for kind in ("curve", "edge", "ran")
    }
    assert found["curve"] == [(4, 10.0), (68, 20.0), (132, 30.0)]
    assert found["edge"] == [(4, 10.0), (68, 20.0)]  # 64 blocks are off the curve
    assert found["ran"] == [(68, pytest.approx(25.0))]
    assert [row["steps"] for row in rows if row["kind"] == "ran"] == [4]
    only_timed = {"staircase": curve | {"is_discrete": True, "tokens": [4, 100, 132]}}
    rows = report_rows.staircase(only_timed, cells(report(*runs)))
    assert [row["tokens"] for row in rows if row["kind"] == "edge"] == [4]


def test_a_start_has_two_stages_and_its_kind() -> None:
    rows = report_rows.starts(cells(fake_report()))
    assert {row["start"] for row in rows} == {
        *("empty compile cache", "full compile cache")
    }
    cold = [row for row in rows if row["start"].startswith("empty")][:2]
    assert [(row["since_s"], row["until_s"]) for row in cold] == [(0, 2.0), (2.0, 9.0)]
    assert {
        row["part"]: row["seconds"]
        for row in report_rows.programs(cells(fake_report(strategies=("pow2",))))
    } == {"trace": 0.2, "compile": 1.5}
