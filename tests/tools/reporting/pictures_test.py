"""The host's share of a step, by kind of step."""

import pytest

from jserve_sched.steps.record import StepRecord
from jserve_tools.measuring.breakdown import break_down
from jserve_tools.reporting.tables import host_table
from tests.fakes import make_step


def step(
    step_id: int, *, num_blocks: int = 0, rows: int = 4, host_s: float | None = None
) -> StepRecord:
    return make_step(
        4,
        num_blocks,
        step_id=step_id,
        used_rows=rows,
        plan_s=0.0001,
        transfer_s=0.0002,
        launch_s=0.0003,
        wait_s=0.004,
        apply_s=0.0004,
        host_s=0.0011 if host_s is None else host_s,
    )


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
    assert "not less time in Python than in XLA" in host_table([entry])


def test_with_overlap_no_device_time_is_made_up() -> None:
    found = break_down([step(0)], detokenise_s=None, has_overlap=True)
    assert found[0]["overlap"] is True
    assert not {"device_ms", "host_to_device"} & set(found[0])
    table = host_table(found)
    assert "overlap on" in table
    assert "in XLA" not in table and "host/device" not in table
