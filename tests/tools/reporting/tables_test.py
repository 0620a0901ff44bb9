"""The tables on the terminal: dashes, and no columns, for the unknown."""

import re
from typing import Any

from jserve_tools.reporting.metrics import run_tables
from jserve_tools.reporting.tables import fits_table, render
from tests.fake_report import small_report, small_run


def run(num_attained: int = 9, **fields: Any) -> dict[str, Any]:
    known = {"policy": "sjf", "load": 0.5, "num_errors": 1}
    return small_run(num_attained, 12, **known | fields)


def columns(table: str) -> dict[str, tuple[str, ...]]:
    head, _, *rows = [re.split(r"\s{2,}", line) for line in table.splitlines()]
    return dict(zip(head, zip(*rows, strict=True), strict=True))


def shown(*runs: dict[str, Any]) -> list[dict[str, tuple[str, ...]]]:
    """Returns the columns of each table of some runs."""
    return [columns(table) for table in run_tables(small_report(*runs)).split("\n\n")]


def test_columns_line_up() -> None:
    assert render([["a", "b"], ["long", "1"]]) == "a     b\n----  -\nlong  1"


def test_cells_have_a_row_each_and_dashes_for_the_unknown() -> None:
    classes = {"lax": run(6), "tight": run(12)}
    runs = run(by_class=classes), run(policy="edf", ttft_s={"p50": 0.5})
    goals, latencies = shown(*runs)
    assert goals == {
        "setting": ("sjf / pow2 @ 0.5x", "edf / pow2 @ 0.5x"),
        "attained": ("75.0% (46.8% to 91.1%)",) * 2,
        "attained, lax": ("50.0%", "-"),
        "attained, tight": ("100.0%", "-"),
        "errors": ("1", "1"),
    }
    assert latencies["TTFT p50"] == ("-", "500.0ms")
    (found,) = shown(run(by_class={"one": run()}))
    assert "attained, one" not in found


def test_padding_and_starts_are_told_where_they_were_measured() -> None:
    start = {"warm_s": 9.5, "compile_s": 8.25}
    cold = start | {"programs": [{"source": "compiled"}]}
    warm = run(policy="edf", start_up={"warm_s": 0.5})
    _, found = shown(run(pad_share_time=0.2, num_programs=4, start_up=cold), warm)
    del found["setting"]
    assert found == {
        "padding of time": ("20.0%", "-"),
        "programs": ("4", "-"),
        "cold start, all programs": ("9.50s", "-"),
        "cold start, compiling": ("8.25s", "-"),
        "other start, all programs": ("-", "500.0ms"),
    }


def test_predicted_lengths_are_shown_only_where_something_was_predicted() -> None:
    error = {"chat": {"mean_abs_error_tokens": 24.0}}
    classes = {"chat": run(), "code": run()}
    guessed = run(policy="annealing", length_error=error)
    (found,) = shown(run(by_class=classes), guessed | {"by_class": classes})
    assert found["output length error, chat"] == ("-", "24.0 tokens")
    assert "output length error, code" not in found


def test_goodput_and_fits() -> None:
    searched = run(goodput_qps=2.5, goodput_violation_share=0.0123)
    (found,) = shown(searched | {"goodput_ci95_qps": [2.25, 2.75]})
    assert found["goodput"] == ("2.5/s (2.25/s to 2.75/s)",)
    assert found["violations at goodput"] == ("1.2%",)
    fit = {"num_programs": 12, "expected_s": 0.0123, "pad_share_time": 0.05}
    found = columns(fits_table([{"policy": "edf", "qps": 2.0, "iterations": [fit]}]))
    assert [text for (text,) in found.values()] == [
        *("edf / fitted @ 2/s", "12", "12.3ms", "5.0%")
    ]
