"""The page: whole, self-contained, well formed, and safe from what it quotes."""

import collections
import html.parser
import json
import pathlib
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from fake_report import fake_report
from jserve_tools.html_plots import plots
from jserve_tools.html_report import html_page, write_figures

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "link", "br", "img", "input", "hr"}
EVIL = "</script><script>alert('$x$ & \"y\"')</script>"


class Page(html.parser.HTMLParser):
    """What a test asks of a page."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.scripts: dict[str, str] = {}
        self.text: list[str] = []
        self.tags: collections.Counter[str] = collections.Counter()
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page.decode())
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self._open.pop()
        assert opened == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] == "script":
            name = self._open[-1][1]["id"]
            assert name is not None
            self.scripts[name] = self.scripts.get(name, "") + data
        else:
            self.text.append(data)

    def values(self, *names: str) -> list[str]:
        return [value or "" for _, name, value in self.attributes if name in names]


def small_report() -> dict[str, Any]:
    return fake_report(policies=("fcfs", "sliding"), strategies=("pow2", "fitted"))


@pytest.fixture(scope="module")
def page() -> bytes:
    return html_page(small_report())


def svgs(page: bytes) -> dict[str, ElementTree.Element]:
    found = re.findall(r"<svg.*?</svg>", page.decode(), re.DOTALL)
    roots = [ElementTree.fromstring(text) for text in found]
    return {root.attrib["aria-labelledby"]: root for root in roots}


def test_nothing_is_loaded_from_anywhere(page: bytes) -> None:
    parsed = Page(page)
    for value in parsed.values("href", "xlink:href", "src", "action", "srcset", "data"):
        assert value.startswith("#") or value == "data:,"
    assert set(re.findall(r"https?://[^\"'<\s)]+", page.decode())) == {
        "http://www.w3.org/2000/svg"
    }
    assert "@import" not in page.decode()
    assert not set(parsed.tags) & {"iframe", "object", "embed", "img", "form"}
    kinds = [value for tag, name, value in parsed.attributes if tag == "script"]
    assert len(kinds) == 2 * parsed.tags["script"]
    assert kinds.count("application/json") == parsed.tags["script"] > 0
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]


def test_it_says_what_browsers_and_readers_need(page: bytes) -> None:
    parsed = Page(page)
    assert page.startswith(b"<!DOCTYPE html>")
    assert ("html", "lang", "en") in parsed.attributes
    assert ("meta", "name", "viewport") in parsed.attributes
    assert parsed.tags["title"] == parsed.tags["h1"] == 1
    text = " ".join(parsed.text)
    for word in ("0123456789ab", "azure_conv.csv", "tiny", "--policies=fcfs,sliding"):
        assert word in text


def test_ids_are_unique_and_references_are_kept(page: bytes) -> None:
    parsed = Page(page)
    ids = parsed.values("id")
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z][\w.-]*", one) for one in ids)
    known = set(ids)
    used = [value[1:] for value in parsed.values("href", "xlink:href") if "#" in value]
    used += re.findall(r"url\(#([^)]+)\)", page.decode())
    used += parsed.values("aria-labelledby")
    assert used and set(used) <= known


def test_every_plot_stands_there_with_its_data(page: bytes) -> None:
    report = small_report()
    expected = {f"data-{plot.name}": plot.data for plot in plots(report)}
    scripts = Page(page).scripts
    assert {name: json.loads(text) for name, text in scripts.items()} == expected
    drawn = svgs(page)
    assert len(drawn) == len(expected) == 9
    for name, root in drawn.items():
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        assert width > 300 and height > 50 and "width" not in root.attrib
        marks = [one for one in root.iter() if "--mark-" in one.attrib.get("id", "")]
        assert marks, name
        assert all(next(mark.iter(), None) is not None for mark in marks)


def test_marks_on_the_page_are_as_many_as_the_data(page: bytes) -> None:
    data = {
        name.removeprefix("data-"): json.loads(text)
        for name, text in Page(page).scripts.items()
    }
    expected = {
        "attainment": len(data["attainment"]["cells"]),
        "classes": len(data["classes"]["points"]),
        "padding": 3 * len(data["padding"]["bars"]),
        "start-up": 4 * len(data["start-up"]["bars"]),
        "staircase": len(data["staircase"]["tables"]),
    }
    for policy in ("fcfs", "sliding"):
        expected[f"step-tokens-{policy}"] = sum(
            bin[2] > 0
            for panel in data[f"step-tokens-{policy}"]["panels"]
            for bin in panel["bins"]
        )
        expected[f"programs-{policy}"] = sum(
            program["num_steps"] > 0
            for panel in data[f"programs-{policy}"]["panels"]
            for program in panel["programs"]
        )
    found = {
        name.removeprefix("title-"): sum(
            "--mark-" in one.attrib.get("id", "") for one in root.iter()
        )
        for name, root in svgs(page).items()
    }
    assert found == expected


def test_edges_of_a_strategy_are_all_drawn(page: bytes) -> None:
    root = svgs(page)["title-staircase"]
    for index, num_edges in enumerate((8, 11)):  # pow2, fitted
        (mark,) = [
            one
            for one in root.iter(f"{SVG}g")
            if one.attrib.get("id") == f"staircase--mark-{index}"
        ]
        assert len(list(mark.iter(f"{SVG}use"))) == num_edges


def test_the_table_has_each_cell_and_no_empty_column(page: bytes) -> None:
    text = page.decode()
    assert text.count('<tr><th scope="row">') == 4
    for word in ("all programs", "compiled after warm-up", "MiB", "interactive"):
        assert word in text
    assert "goodput, requests/s" not in text


def test_what_is_quoted_stays_text() -> None:
    report = fake_report(policies=(EVIL, "a\x00b"), strategies=("pow2",))
    report["device"] = EVIL
    report["command"] = ["jserve-bench", EVIL]
    parsed = Page(page := html_page(report))
    assert parsed.tags["script"] == len(parsed.scripts) == len(svgs(page))
    assert "alert" in " ".join(parsed.text)
    data = json.loads(parsed.scripts["data-padding"])
    assert data["policies"] == [EVIL, "a\x00b"]


def test_a_report_with_holes_is_still_a_page() -> None:
    report = fake_report(policies=("fcfs",), strategies=("pow2",))
    del report["staircase"], report["workload"], report["machine"]
    for run in report["runs"]:
        for name in ("start_up", "steps_by_program", "by_class", "tbt_s", "buckets"):
            del run[name]
    parsed = Page(page := html_page(report))
    assert set(parsed.scripts) == {
        *("data-attainment", "data-padding", "data-start-up", "data-step-tokens-fcfs")
    }
    assert len(svgs(page)) == 4
    assert "TBT" not in parsed.text and "E2E" in parsed.text


def test_a_bare_report_is_still_a_page() -> None:
    parsed = Page(html_page({"schema_version": 1, "runs": [{"policy": "x"}]}))
    assert parsed.tags["table"] == 1
    assert not parsed.tags["svg"] and not parsed.tags["h3"]


def test_start_up_programs_are_listed() -> None:
    report = fake_report(policies=("fcfs",), strategies=("pow2",))
    report["runs"][0]["start_up"]["programs"] = [
        {
            "program": "B32xNB16",
            "trace_s": 0.1,
            "compile_s": 2.5,
            "executable_bytes": 2048,
            "source": "compiled",
        },
        {"program": "B1xNB0", "trace_s": 0.1, "compile_s": 0.2, "source": "cache"},
    ]
    text = " ".join(Page(html_page(report)).text)
    for word in ("B32xNB16", "2.50s", "2 KiB", "compiled", "B1xNB0", "cache"):
        assert word in text


def test_figures_become_pngs(tmp_path: pathlib.Path) -> None:
    report = fake_report(policies=("fcfs",), strategies=("pow2",))
    paths = write_figures(report, tmp_path / "figures")
    assert [path.stem for path in paths] == [plot.name for plot in plots(report)]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_other_schemas_are_refused() -> None:
    with pytest.raises(ValueError, match="schema_version is 3"):
        html_page(small_report() | {"schema_version": 3})


def test_a_start_is_called_cold_only_if_it_was() -> None:
    report = fake_report(policies=("fcfs",), strategies=("pow2",))
    (run,) = report["runs"]
    assert "Start, empty cache" in Page(html_page(report)).text
    del run["start_up_warm"]
    stored = {"program": "B2xNB0", "trace_s": 0.1, "compile_s": 0.1}
    for source, is_cold in (("stored", False), ("compiled", True)):
        run["start_up"]["programs"] = [stored | {"source": source}]
        page = html_page(report)
        assert ("Start, empty cache" in Page(page).text) == is_cold
        assert ("Start" in Page(page).text) != is_cold
        data = json.loads(Page(page).scripts["data-start-up"])
        kind = "cold" if is_cold else "other"
        assert set(data["bars"][0]) - {"strategy", "num_programs"} == {
            *(f"{kind}_ready_s", f"{kind}_warm_s")
        }
        assert ("empty cache:" in page.decode()) == is_cold  # the legend


def test_one_compile_in_three_turns_is_told() -> None:
    report = fake_report(policies=("fcfs",), strategies=("pow2",))
    report["runs"] = [
        report["runs"][0] | {"num_compiles_after_warmup": count} for count in (0, 1, 0)
    ]
    page = html_page(report).decode()
    head = re.findall(r'<th scope="col">([^<]*)</th>', page)
    row = re.findall(r"<td>([^<]*)</td>", page)
    assert dict(zip(head[1:], row, strict=False))["compiled after warm-up"] == "1"
