"""The report's arithmetic, worked out by hand."""

import json
from typing import Any

import pytest

from jserve_sched.outcomes import (
    EngineCounters,
    Failure,
    summarise_run,
    summarise_steps,
    token_gaps_s,
    wilson_interval,
)
from jserve_sched.requests.output_lengths import LengthErrors
from jserve_sched.requests.slo import Slo
from jserve_sched.steps.record import StepRecord
from tests.fakes import make_outcome as outcome
from tests.fakes import make_step

TIGHT = Slo(ttft_s=1.0, tbt_s=0.5)


def step(**fields: Any) -> StepRecord:
    times_s = {"bucket_s": 0.010, "used_s": 0.010, "duration_s": 0.011}
    return make_step(4, **(times_s | {"plan_s": 0.0002} | fields))


def test_latencies_count_from_arrival() -> None:
    one = outcome(10.5, 10.75, 11.25)
    assert (one.ttft_s, one.e2e_s) == (0.5, 1.25)
    assert token_gaps_s([one, outcome(11.0)]) == [0.25, 0.5]


@pytest.mark.parametrize(
    ("times", "slo", "failure", "violation"),
    [
        ((11.0, 11.5, 12.0), TIGHT, None, None),
        ((11.01,), TIGHT, None, "late_first_token"),
        ((10.5, 11.6), TIGHT, None, "late_token"),
        ((10.1, 13.0), Slo(ttft_s=1.0, ttlt_s=2.5), None, "late_last_token"),
        ((13.0,), Slo(ttlt_s=2.5), None, "late_last_token"),
        ((), TIGHT, Failure.REJECTED, "rejected"),
        ((10.1,), TIGHT, Failure.UNFINISHED, "unfinished"),
        ((10.1,), Slo(), Failure.ERROR, "error"),
        ((99.0,), Slo(), None, None),
    ],
)
def test_violations_have_one_cause(times, slo, failure, violation) -> None:
    one = outcome(*times, slo=slo, failure=failure)
    assert one.violation == violation
    assert one.is_attained == (violation is None)


def test_slack_is_banked_but_the_mean_rule_forgives_more() -> None:
    early = outcome(10.1, 11.4)  # a gap of 1.3 s, yet due only at 11.5
    assert early.is_attained and not early.is_attained_mean_tpot
    hiccup = outcome(10.9, 11.6, 11.7, 11.8)  # the second is due at 11.5
    assert not hiccup.is_attained and hiccup.is_attained_mean_tpot  # 0.3 s a token


def test_run_counts_every_request_once() -> None:
    run = summarise_run(
        [
            outcome(10.5, 10.75, 11.0),
            outcome(12.0, arrival_s=10.5),  # late by half a second
            outcome(arrival_s=11.0, failure=Failure.REJECTED),
            outcome(12.2, service_class="lax", slo=Slo(), arrival_s=12.0),
            outcome(service_class="lax", arrival_s=13.0, failure=Failure.TOO_LONG),
        ],
        labels={"policy": "edf"},
    )
    causes = {"late_first_token": 1, "rejected": 1, "too_long": 1}
    counts: dict[str, Any] = {"num_requests": 5, "num_finished": 3, "num_violations": 3}
    counts |= {"num_rejected": 1, "num_errors": 1, "violations_by_cause": causes}
    assert run.items() >= (counts | {"policy": "edf", "attainment": 2 / 5}).items()
    assert run["by_class"]["tight"]["attainment"] == pytest.approx(1 / 3)
    assert run["by_class"]["lax"]["num_violations"] == 1
    assert run["ttft_s"]["p50"] == pytest.approx(0.5)
    assert run["ttft_s"]["mean"] == pytest.approx((0.5 + 1.5 + 0.2) / 3)
    # From the first arrival at 10.0 to the last token at 12.2: 5 tokens, 2 attained.
    assert run["output_tokens_per_s"] == pytest.approx(5 / 2.2)
    assert run["met_per_s"] == pytest.approx(2 / 2.2)


def test_unmeasured_is_absent_and_no_request_is_no_report() -> None:
    run = summarise_run([outcome(failure=Failure.ERROR)])
    absent = {"ttft_s", "tbt_s", "e2e_s", "output_tokens_per_s", "num_steps"}
    absent |= {"pad_share_tokens", "num_compiles_after_warmup", "length_error"}
    assert not absent & set(run)
    with pytest.raises(ValueError, match="at least one request"):
        summarise_run([])


def test_padding_by_hand() -> None:
    mixed = step(num_blocks=2, used_rows=2, used_blocks=1, prefill_tokens=5)
    steps = [
        step(used_rows=3, used_s=0.012),  # 4 computed, 3 used; no clipping of time
        # 4 + 2 * 8 = 20 computed, 2 + 5 = 7 used, 2 + 8 = 10 opened
        mixed._replace(bucket_s=0.030, used_s=0.020),
    ]
    run = summarise_steps(steps, block_tokens=8)
    assert run["num_steps"] == 2
    assert run["pad_share_tokens"] == pytest.approx(1 - 10 / 24)
    assert run["pad_share_bucket"] == pytest.approx(1 - 13 / 24)
    assert run["pad_share_block"] == pytest.approx(3 / 24)
    assert run["pad_share_time"] == pytest.approx(1 - 0.032 / 0.040)
    assert run["plan_ms"]["p50"] == pytest.approx(0.2)
    assert summarise_steps([], block_tokens=8) == {"num_steps": 0}


def test_steps_by_bucket() -> None:
    mixed = step(num_blocks=40, used_rows=2, used_blocks=38, prefill_tokens=300)
    steps = [
        step(used_rows=3, duration_s=0.010),
        step(used_rows=1, duration_s=0.030),
        mixed._replace(bucket_s=0.200, duration_s=0.160),
    ]
    run = summarise_steps(steps, block_tokens=8)
    names = ("num_rows", "num_blocks", "num_steps", "used_tokens_mean", "bucket_s")
    found = [
        [one[name] for name in (*names, "step_s_p50", "total_s")]
        for one in run["steps_by_program"]
    ]
    assert found[0] == pytest.approx([4, 0, 2, 2.0, 0.010, 0.020, 0.040])
    assert found[1] == pytest.approx([4, 40, 1, 302.0, 0.200, 0.160, 0.160])
    assert run["steps_per_s"] == pytest.approx(3 / 0.200)


def test_steps_and_counters_join_the_run() -> None:
    errors = LengthErrors(
        num_requests=4,
        sum_tokens=100,
        sum_predicted_tokens=130,
        sum_abs_error_tokens=50,
    )
    counters = EngineCounters(
        num_programs=4,
        num_compiles_after_warmup=0,
        num_preemptions=2,
        prefix_hit_tokens=0,
        length_errors={"chat": errors},
    )
    run = summarise_run(
        [outcome(10.5)], steps=[step()], block_tokens=8, counters=counters
    )
    assert run["num_preemptions"] == 2
    assert run["prefix_hit_tokens"] == 0  # measured, so present
    assert run["pad_share_tokens"] == 0.0
    assert run["length_error"] == {
        "chat": {
            "num_requests": 4,
            "mean_tokens": 25.0,
            "mean_predicted_tokens": 32.5,
            "mean_abs_error_tokens": 12.5,
        }
    }
    assert "length_errors" not in run
    json.dumps(run)


def test_wilson_interval_against_the_textbook() -> None:
    low, high = wilson_interval(8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 5)[0] == 0.0
    assert wilson_interval(5, 5)[1] == 1.0
    with pytest.raises(ValueError, match="num_requests=0"):
        wilson_interval(0, 0)
