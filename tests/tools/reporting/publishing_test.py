"""A report is written whatever is installed, and an older one is read before work."""

import json
import pathlib
import sys

import pytest

from jserve_tools.reporting.config import ReportConfig
from jserve_tools.reporting.finished_runs import FinishedRuns
from jserve_tools.reporting.publishing import publish
from tests.fake_report import fake_report

GOOD = {"policy": "fcfs", "num_requests": 2, "num_violations": 0}


@pytest.mark.parametrize("missing", ["altair", "vl_convert"])
def test_without_the_extra_one_line_says_how_to_get_the_page(
    missing: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("jserve_tools.reporting.page", "jserve_tools.reporting.charts"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    config = ReportConfig(output=tmp_path, json_line=False)
    report = fake_report(policies=("fcfs",), strategies=("pow2",), loads=(0.9,))
    runs = FinishedRuns(tmp_path / "runs.jsonl", resumes=True)
    lines = publish(report, config, report, runs).splitlines()
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert f"no page, without {missing}: pip install 'jserve[report]'" in lines
    assert "within the noise" in lines[-1]  # the comparison comes all the same


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "{"),
        *(
            json.dumps({"schema_version": 2, "runs": runs})
            for runs in (
                *([], [1], [GOOD, GOOD | {"load": "x"}], [{"num_requests": 3}]),
                *([{"by_class": 3, "num_requests": 1}], [GOOD | {"num_requests": "3"}]),
                [GOOD | {"requests": [{"ttft_s": "soon"}]}],
            )
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(
    text: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^compare=.*report\.json is not a report: "):
        ReportConfig(output=tmp_path, compare=path).probe()
    path.write_text(json.dumps(fake_report()))
    assert ReportConfig(output=tmp_path, compare=path).probe() == fake_report()
