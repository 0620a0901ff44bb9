import json

from jserve.events import StepRecord
from jserve_sched.report import Failure, Outcome
from jserve_sched.slo import Slo
from jserve_tools.plots import PlottedRun
from jserve_tools.stored_runs import run_from_json, run_to_json

STEP = StepRecord(
    step_id=3,
    end_s=12.345678901,
    num_rows=4,
    num_blocks=2,
    used_rows=3,
    used_blocks=1,
    prefill_tokens=20,
    decode_pages=1,
    block_pages=2,
    num_waiting=5,
    ended_by="full",
    leaves_work=True,
    predicted_s=0.010,
    bucket_s=0.011,
    used_s=0.009,
    duration_s=0.012,
    plan_s=0.001,
    transfer_s=0.002,
    launch_s=0.003,
    wait_s=0.004,
    apply_s=0.005,
    host_s=0.011,
)


def outcome(failure: Failure | None) -> Outcome:
    return Outcome(
        service_class="tight",
        slo=Slo(ttft_s=0.1, tbt_s=0.05),
        arrival_s=5.123456789,
        num_prompt_tokens=9,
        max_tokens=3,
        token_times_s=[5.2, 5.23456789012, 5.3] if failure is None else [],
        failure=failure,
        message="" if failure is None else "full",
    )


def test_a_run_comes_back_as_it_was() -> None:
    run = PlottedRun(
        summary={"policy": "edf", "attainment": 0.5},
        outcomes=[outcome(None), outcome(Failure.REJECTED)],
        steps=[STEP],
        block_tokens=32,
    )
    row = json.loads(json.dumps(run_to_json(run)))
    assert run_from_json(row) == run


def test_a_foreign_server_has_no_steps() -> None:
    run = PlottedRun(summary={}, outcomes=[outcome(None)])
    assert run_from_json(json.loads(json.dumps(run_to_json(run)))) == run
