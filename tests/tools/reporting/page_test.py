"""The page and the pictures: whole, self-contained, and safe from what they quote."""

import html.parser
import json
import pathlib
import re
from typing import Any

import pytest

from jserve_tools.reporting import page as report_page
from jserve_tools.reporting.charts import charts, fields, overview
from tests.fake_report import fake_report

VOID = {"meta", "link", "br", "img", "input", "hr"}
EVIL = "</script><script>alert('$x$ & \"y\"')</script>"
NAMES = ["choice", "classes", "latencies", "failures", "padding", "staircase"]


@pytest.fixture(autouse=True)
def short_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vega itself takes seconds to put together, and no test here runs it."""
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda: "'</script><!--'")


class Page(html.parser.HTMLParser):
    """What a test asks of a page: tags that close, attributes, scripts and text."""

    def __init__(self, report: dict[str, Any]) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.source = report_page.html_page(report, charts(report)).decode()
        self.feed(self.source)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        else:
            self.text += data


def test_every_chart_is_there_with_its_rows_and_nothing_is_loaded() -> None:
    report = fake_report()
    page = Page(report)
    specs = json.loads(page.scripts[0])
    assert list(specs) == [chart.name for chart in charts(report)] == NAMES
    for spec in specs.values():
        assert spec["data"]["values"] and "config" not in spec
    for tag, name, value in page.attributes:
        if name in ("href", "src", "action", "srcset", "data"):
            assert (tag, value) == ("link", "data:,")
    without_specs = page.source.replace(page.scripts[0], "")
    assert not re.findall(r"https?://", without_specs)
    assert len(page.scripts) == 3 and "@import" not in page.source


def test_it_says_what_a_reader_needs_first() -> None:
    page = Page(fake_report())
    assert page.source.startswith("<!DOCTYPE html>")
    for word in (
        *("is best:", "2026-01-02", "0.1.0", "0123456789ab", "azure_conv.csv", "tiny"),
        *("--policies=fcfs,edf,sliding", "TTFT ≤ 2.25s", "connection reset by peer"),
    ):
        assert word in page.text
    options = [value for tag, name, value in page.attributes if tag == "select"]
    assert options == ["policy", "strategy", "load", "class"]


def test_tables_say_what_charts_show() -> None:
    report = fake_report(policies=("fcfs",), loads=(0.9,))
    page = Page(report)
    for chart in charts(report):
        (body,) = re.findall(
            rf'<section id="{chart.name}">.*?<tbody>(.*?)</tbody>', page.source, re.S
        )
        assert body.count("<tr") == len(chart.rows)
        tooltips = re.findall(r'"field": "(\w+)"', json.dumps(chart.spec))
        assert set(fields(chart.rows)) <= set(tooltips)


def test_what_is_quoted_stays_text() -> None:
    report = fake_report(policies=(EVIL, "a\x00b"), strategies=("pow2",))
    report["device"] = EVIL
    report["command"] = ["jserve-bench", EVIL]
    page = Page(report)
    assert len(page.scripts) == 3 and "alert" in page.text
    assert EVIL in {row["policy"] for row in charts(report)[0].rows}


def test_a_report_with_holes_has_fewer_charts_and_none_that_is_empty() -> None:
    report = fake_report(policies=("fcfs",), strategies=("pow2",), loads=(0.9,))
    del report["staircase"], report["workload"], report["machine"]
    for run in report["runs"]:
        for name in ("start_up", "steps_by_program", "by_class", "requests", "buckets"):
            del run[name]
    page = Page(report)
    assert list(json.loads(page.scripts[0])) == ["choice", "padding"]
    assert "select" not in {tag for tag, _, _ in page.attributes}
    bare = Page({"schema_version": 1, "runs": [{"policy": "x"}]})
    assert bare.scripts == [] and "All numbers" in bare.text


def test_pictures_are_written_beside_the_page(tmp_path: pathlib.Path) -> None:
    report = fake_report(policies=("fcfs",), strategies=("pow2",), loads=(0.9,))
    for run in report["runs"]:
        del run["steps_by_program"]  # there are edges, and no steps that fell on them
    paths = report_page.write_page(report, tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in paths} == {
        *("report.html", "report.png"),
        *(f"figures/{name}.{kind}" for name in NAMES for kind in ("png", "svg")),
    }
    for path in paths:
        content = path.read_bytes()
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG") and len(content) > 5000
        elif path.suffix == ".svg":
            assert b'class="mark-' in content and b"<path" in content
    assert len(overview(charts(report))["vconcat"]) == 4
