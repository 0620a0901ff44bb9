"""The page in a real browser: no error, nothing empty, nothing too wide.

Chromium opens the page at a desk's width and at a phone's, light and dark. A script
that is added to the page waits until its charts are drawn, measures them, picks one
policy, and measures again. These tests run only when asked for: they need a browser.
"""

import pathlib
from typing import Any

import pytest

from jserve_tools.reporting.charts import charts
from jserve_tools.reporting.page import html_page
from tests.browser import found_in_frame, visit
from tests.fake_report import fake_report

pytestmark = pytest.mark.browser

MEASURE = """<script type="module">
const drawn = async (is) => {
  while (!is(document.body.dataset.drawn)) {
    await new Promise((go) => setTimeout(go, 20));
  }
};
const measured = () => Object.fromEntries(
  [...document.querySelectorAll(".chart")].map((one) => {
    const marks = [...one.querySelectorAll(".role-mark > path, .role-mark > line")];
    const boxes = marks.map((mark) => mark.getBoundingClientRect());
    return [one.id.slice(6), {
      marks: boxes.filter((box) => box.width + box.height > 0).length,
      width: one.querySelector("svg").getBoundingClientRect().width,
      rows: one.parentElement.querySelectorAll("tbody tr:not([hidden])").length,
      texts: [...one.querySelectorAll("svg text")].map((text) => text.textContent),
    }];
  }));
await drawn((chosen) => chosen !== undefined);
const found = {
  width: innerWidth,
  scroll: document.documentElement.scrollWidth,
  ink: getComputedStyle(document.body).color,
  label: getComputedStyle(document.querySelector(".role-axis-label text")).fill,
  loaded: performance.getEntriesByType("resource").length,
  all: measured(),
};
const select = document.querySelector("#filters select[name=policy]");
select.value = "edf";
select.dispatchEvent(new Event("change", {bubbles: true}));
await drawn((chosen) => JSON.parse(chosen).policy === "edf");
found.one = measured();
parent.postMessage(JSON.stringify(found), "*");
</script>"""


@pytest.fixture(scope="module")
def page() -> str:
    report = fake_report()
    return html_page(report, charts(report)).decode()


def test_an_error_on_a_page_would_be_seen(tmp_path: pathlib.Path) -> None:
    _, console = visit("<script>no_such_name()</script>", tmp_path)
    assert any("no_such_name" in line for line in console)


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_chart_is_drawn_fits_and_follows_the_filters(
    page: str, width: int, is_dark: bool, tmp_path: pathlib.Path
) -> None:
    found: dict[str, Any] = found_in_frame(
        page + MEASURE, tmp_path, width=width, is_dark=is_dark
    )
    assert found["scroll"] <= found["width"] == width and found["loaded"] == 0
    ink = "rgb(232, 234, 237)" if is_dark else "rgb(29, 31, 35)"
    assert found["ink"] == found["label"] == ink
    drawn = {chart.name: chart for chart in charts(fake_report())}
    assert list(found["all"]) == list(drawn)
    for name, one in found["all"].items():
        assert one["rows"] == len(drawn[name].rows)
        # The curve is one mark of many rows.
        least = 2 if name == "staircase" else one["rows"]
        assert one["marks"] >= least, name
        assert 0.55 * min(width, 700) < one["width"] <= width
    for name in drawn:
        before, after = found["all"][name], found["one"][name]
        assert 0 < after["marks"] < before["marks"]
        assert 0 < after["rows"] < before["rows"]
        policies = {text.split(" / ")[0] for text in after["texts"]}
        assert "fcfs" not in policies, name
