"""Tables, the host breakdown and the plot, from made-up runs."""

import pytest

from jserve.events import StepRecord
from jserve_sched.report import Failure, Outcome, summarise_run
from jserve_sched.slo import ServiceClass, Slo
from jserve_sched.workload import Yardstick
from jserve_tools.breakdown import break_down
from jserve_tools.plots import PlottedRun, draw
from jserve_tools.tables import (
    host_table,
    render,
    runs_table,
    shapes_table,
    slo_table,
)
from jserve_tools.workload import Workload
from jserve_tools.workload_trace import TraceRow


def step(
    step_id: int, *, num_blocks: int = 0, rows: int = 4, host_s: float | None = None
) -> StepRecord:
    return StepRecord(
        step_id=step_id,
        end_s=0.01 * step_id,
        num_rows=4,
        num_blocks=num_blocks,
        used_rows=rows,
        used_blocks=num_blocks,
        prefill_tokens=30 * num_blocks,
        decode_pages=1,
        block_pages=1,
        num_waiting=0,
        ended_by="full",
        leaves_work=False,
        predicted_s=0.010,
        bucket_s=0.010,
        used_s=0.008,
        duration_s=0.009,
        plan_s=0.0001,
        transfer_s=0.0002,
        launch_s=0.0003,
        wait_s=0.004,
        apply_s=0.0004,
        host_s=0.0011 if host_s is None else host_s,
    )


def made_up_run(policy: str, *, steps: bool = True) -> PlottedRun:
    outcomes = [
        Outcome(
            service_class="tight" if i % 2 else "lax",
            slo=Slo(ttft_s=0.1 + 0.01 * i, tbt_s=0.05) if i % 2 else Slo(),
            arrival_s=float(i),
            num_prompt_tokens=9,
            max_tokens=3,
            token_times_s=(i + 0.05, i + 0.07, i + 0.2) if i else (),
            failure=None if i else Failure.REJECTED,
        )
        for i in range(12)
    ]
    log = [step(i, num_blocks=i % 2) for i in range(600)] if steps else None
    summary = summarise_run(
        outcomes,
        steps=log,
        block_tokens=32,
        labels={"policy": policy, "load": 0.9, "qps": 1.8},
    )
    return PlottedRun(summary=summary, outcomes=outcomes, steps=log, block_tokens=32)


def test_columns_line_up() -> None:
    assert render([["a", "b"], ["long", "1"]]) == "a     b\n----  -\nlong  1"


def test_runs_table_has_a_row_a_run_and_dashes_for_the_unknown() -> None:
    runs = [made_up_run("fcfs"), made_up_run("edf", steps=False)]
    head, _, fcfs, edf = runs_table([run.summary for run in runs]).splitlines()
    for word in ("met lax", "met tight", "TTFT p50", "TBT p50", "E2E p50"):
        assert word in head
    assert "goodput" not in head
    assert fcfs.startswith("fcfs @0.9x") and edf.startswith("edf @0.9x")
    assert "91.7%" in fcfs  # eleven of twelve
    searched = {**runs[0].summary, "goodput_qps": 1.2345}
    assert "goodput" in runs_table([searched]) and "1.234" in runs_table([searched])


def test_shapes_table_tells_of_padding_and_of_starts_that_were_measured() -> None:
    runs = [made_up_run("fcfs").summary, made_up_run("edf", steps=False).summary]
    head, _, fcfs, edf = shapes_table(runs).splitlines()
    assert head.split() == [
        *("shapes", "req/s", "pad", "pad", "time", "steps/s", "programs")
    ]
    assert fcfs.split()[-3:] == ["20.0%", "111.1", "-"]
    assert edf.split()[-4:] == ["-", "-", "-", "-"]
    started = {
        **runs[0],
        "num_programs": 4,
        "num_compiles_after_warmup": 0,
        "start_up": {"warm_s": 9.5, "compile_s": 8.25, "executable_bytes": 3 * 2**20},
        "start_up_warm": {"warm_s": 0.5, "compile_s": 0.25},
    }
    row = shapes_table([started]).splitlines()[-1]
    assert row.split()[-8:] == [
        *("4", "9.50s", "8.25s", "500.0ms", "250.0ms", "3.0", "MiB", "0")
    ]


def test_slo_table_gives_bounds_and_counts() -> None:
    tight = ServiceClass(name="tight", share=1.0, ttft_slowdown=2, tbt_step_multiple=4)
    workload = Workload(rows=[TraceRow(0, 10, 1), TraceRow(1, 20, 1)], classes=(tight,))
    table = slo_table(
        workload, Yardstick(prompt_tokens=(10, 20), ttft_s=(0.1, 0.6), step_s=0.01)
    )
    row = table.splitlines()[-1]
    assert row.split() == [
        *("tight", "1", "2", "200.0ms", "to", "1.20s", "40.0ms", "none")
    ]


def test_breakdown_by_kind_of_step() -> None:
    steps = [step(i, num_blocks=i % 2, rows=3 + (i % 4 == 0)) for i in range(80)]
    found = break_down(steps, detokenise_s=0.0006, has_overlap=False)
    kinds = {entry["steps"]: entry for entry in found}
    assert kinds["all steps"]["num_steps"] == 80
    assert kinds["with prefill"]["num_steps"] == 40
    assert kinds["decode only, 4 rows"]["num_steps"] == 20
    decode = kinds["decode only"]
    assert decode["overlap"] is False
    assert decode["host_ms"] == pytest.approx(1.1 - 0.3 + 0.6)  # all but launching
    assert decode["median_ms"]["bookkeeping"] == pytest.approx(1.1 - 1.0)
    assert decode["device_ms"] == pytest.approx(0.3 + 4.0)  # not the 9 ms it spans
    assert decode["host_to_device"] == pytest.approx(1.4 / 4.3)
    table = host_table(found)
    for text in ("detokenise", "host/device", "overlap off", "less time in Python"):
        assert text in table
    plain = host_table(break_down(steps, detokenise_s=None, has_overlap=False))
    assert "detokenise" not in plain
    assert break_down([], detokenise_s=None, has_overlap=False) == []


def test_a_host_slower_than_the_device_shows() -> None:
    steps = [step(i, host_s=0.0083) for i in range(20)]  # within a span of 9 ms
    (_, entry, _) = break_down(steps, detokenise_s=None, has_overlap=False)
    assert entry["host_to_device"] > 1
    assert "no less time in Python than in XLA" in host_table([entry])


def test_with_overlap_no_device_time_is_made_up() -> None:
    found = break_down([step(0)], detokenise_s=None, has_overlap=True)
    assert found[0]["overlap"] is True
    assert not {"device_ms", "host_to_device"} & set(found[0])
    table = host_table(found)
    assert "overlap on" in table
    assert "in XLA" not in table and "host/device" not in table


def test_the_picture_is_a_png_with_or_without_steps() -> None:
    full = draw([made_up_run("fcfs"), made_up_run("edf")], title="t")
    bare = draw([made_up_run("edf", steps=False)], title="t")
    for picture in (full, bare):
        assert picture.startswith(b"\x89PNG")
    assert len(full) > len(bare) > 10_000
