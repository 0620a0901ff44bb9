"""A report to compare with is checked whole before anything runs."""

import json
import pathlib
from typing import Any

import pytest

from fake_report import fake_report
from jserve_tools.comparison_flags import read_report

GOOD = {"policy": "fcfs", "num_requests": 2, "num_violations": 0}


@pytest.mark.parametrize(
    "runs",
    [
        [1],
        [GOOD, GOOD | {"load": "x"}],
        [{"by_class": 3, "num_requests": 1}],
        [{"num_requests": 3}],
        [GOOD | {"num_requests": "three"}],
        [GOOD | {"requests": [{"ttft_s": "soon"}]}],
        [GOOD | {"ttft_s": {"p50": float("nan")}}],
        [],
    ],
)
def test_what_cannot_be_compared_is_told_in_one_line(
    runs: list[Any], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"schema_version": 2, "runs": runs}))
    with pytest.raises(
        ValueError, match=r"^compare=.*report\.json is no report: \S.+$"
    ):
        read_report(str(path))


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "\x00"])
def test_what_is_no_report_is_told(text: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"is no report: "):
        read_report(str(path))


def test_a_report_is_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(fake_report()))
    assert read_report(str(path)) == fake_report()
