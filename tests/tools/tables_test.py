"""The tables on the terminal: one row a run, dashes and no columns for the unknown."""

import re
from typing import Any

from jserve_sched.slo import ServiceClass
from jserve_sched.workload import Yardstick
from jserve_tools.tables import (
    fits_table,
    render,
    run_tables,
    slo_table,
)
from jserve_tools.workload import Workload
from jserve_tools.workload_trace import TraceRow


def run(**fields: Any) -> dict[str, Any]:
    return {
        "policy": "sjf",
        "load": 0.5,
        "by_class": {"lax": {"attainment": 0.5}, "tight": {"attainment": 1.0}},
        "attainment": 0.75,
        "num_requests": 12,
        "num_finished": 11,
    } | fields


def columns(table: str) -> dict[str, tuple[str, ...]]:
    head, _, *rows = [re.split(r"\s{2,}", line) for line in table.splitlines()]
    return dict(zip(head, zip(*rows, strict=True), strict=True))


def shown(*runs: dict[str, Any]) -> list[dict[str, tuple[str, ...]]]:
    """Returns the columns of each table of some runs."""
    return [columns(table) for table in run_tables(runs).split("\n\n")]


ERROR = {
    "chat": {
        "num_requests": 3,
        "mean_tokens": 80.0,
        "mean_predicted_tokens": 100.0,
        "mean_abs_error_tokens": 24.0,
    }
}


def test_columns_line_up() -> None:
    assert render([["a", "b"], ["long", "1"]]) == "a     b\n----  -\nlong  1"


def test_runs_have_a_row_each_and_dashes_for_the_unknown() -> None:
    found, _ = shown(run(qps=2.0), run(policy="edf", ttft_s={"p50": 0.5}))
    assert found == {
        "run": ("sjf @0.5x", "edf @0.5x"),
        "req/s": ("2.00", "-"),
        "attained": ("75.0%", "75.0%"),
        "attained lax": ("50.0%", "50.0%"),
        "attained tight": ("100.0%", "100.0%"),
        "failed": ("1", "1"),
        "TTFT p50": ("-", "500.0ms"),
    }


def test_a_load_without_objectives_has_no_columns_of_classes() -> None:
    only = run(by_class={"best_effort": {"attainment": 1.0}}, goodput_qps=1.2345)
    found, _ = shown(only)
    assert "attained best_effort" not in found and found["goodput"] == ("1.234",)


def test_padding_and_starts_are_told_where_they_were_measured() -> None:
    started = run(
        pad_share_time=0.2,
        num_programs=4,
        start_up={"warm_s": 9.5, "compile_s": 8.25, "executable_bytes": 3000},
        start_up_warm={"warm_s": 0.5},
        num_compiles_after_warmup=0,
    )
    _, found = shown(started, run())
    assert found == {
        "buckets": ("sjf @0.5x", "sjf @0.5x"),
        "pad time": ("20.0%", "-"),
        "programs": ("4", "-"),
        "start": ("9.50s", "-"),
        "compile": ("8.25s", "-"),
        "start again": ("500.0ms", "-"),
        "executables, bytes": ("3,000", "-"),
        "compiles later": ("0", "-"),
    }


def test_predicted_lengths_are_shown_only_where_something_was_predicted() -> None:
    _, _, found = shown(run(), run(policy="annealing", length_error=ERROR))
    assert [text for (text,) in found.values()] == [
        *("annealing @0.5x", "chat", "3", "80.0", "100.0", "24.0", "30.0%")
    ]
    assert len(shown(run())) == 2


def test_goodput_and_fits() -> None:
    searched = run(bucket_strategy="none", goodput_qps=2.5)
    searched |= {"goodput_violation_share": 0.0123, "goodput_ci95_qps": [2.25, 2.75]}
    found, _ = shown(searched)
    assert found["run"] == ("sjf/none @0.5x",) and found["goodput"] == ("2.500",)
    assert found["95 % interval"] == ("2.250 to 2.750",)
    assert found["violations"] == ("1.23%",)
    turn = {"num_programs": 12, "expected_s": 0.0123, "pad_share_time": 0.05}
    fit = {"policy": "edf", "qps": 2.0, "iterations": [turn, turn | {"change": -0.01}]}
    found = columns(fits_table([fit]))
    assert found["turn"] == ("1", "2") and found["change"] == ("-", "-1.00%")


def test_slo_table_gives_bounds_and_counts() -> None:
    tight = ServiceClass(name="tight", share=1.0, ttft_slowdown=2, tbt_step_multiple=4)
    workload = Workload(rows=[TraceRow(0, 10, 1), TraceRow(1, 20, 1)], classes=(tight,))
    table = slo_table(
        workload, Yardstick(prompt_tokens=(10, 20), ttft_s=(0.1, 0.6), step_s=0.01)
    )
    assert table.splitlines()[-1].split() == [
        *("tight", "1", "2", "200.0ms", "to", "1.20s", "40.0ms", "none")
    ]
