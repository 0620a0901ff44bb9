"""The page in a real browser: no error, nothing empty, nothing too wide.

Chromium is asked once for each page: once for the page itself, and once for a copy in
frames of both widths, where a script measures boxes. These tests run only when asked
for, and then they need a browser.
"""

import html
import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

import pytest

from fake_report import fake_report
from jserve_tools.html_report import html_page

pytestmark = pytest.mark.browser

WIDTHS = (1280, 390)
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--enable-logging=stderr",
    "--v=0",
)
# The page as the text of a frame may be measured by the page around it.
FRAMES = """<!DOCTYPE html><body>%s<pre id="found"></pre><script>
addEventListener("load", () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument;
    const box = (one) => {
      const rect = one.getBoundingClientRect();
      return [rect.width, rect.height];
    };
    const texts = [...page.querySelectorAll("svg text")];
    found[frame.width] = {
      inner: page.documentElement.clientWidth,
      scroll: page.documentElement.scrollWidth,
      svgs: [...page.querySelectorAll("svg")].map(box),
      marks: [...page.querySelectorAll("svg [id*='--mark-']")].map(box),
      text_px: Math.min(...texts.map((one) => box(one)[1])),
    };
  }
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script></body>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    assert found, "neither chromium nor google-chrome is on the path"
    return found


def visit(browser: str, page: pathlib.Path, folder: pathlib.Path) -> tuple[str, str]:
    """Opens a page; returns its document once it is loaded, and the log."""
    done = subprocess.run(
        [
            browser,
            *QUIET,
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={WIDTHS[0]},900",
            "--virtual-time-budget=5000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


def console(log: str) -> list[str]:
    return [line for line in log.splitlines() if ":CONSOLE" in line]


@pytest.fixture(scope="module")
def page() -> bytes:
    return html_page(fake_report())


def test_an_error_on_a_page_would_be_seen(browser: str, tmp_path: pathlib.Path) -> None:
    page = tmp_path / "broken.html"
    page.write_text("<script>no_such_name()</script>")
    _, log = visit(browser, page, tmp_path)
    assert any("no_such_name" in line for line in console(log))


def test_the_page_opens_without_a_word_on_the_console(
    browser: str, page: bytes, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(page)
    document, log = visit(browser, path, tmp_path)
    assert document.count("<svg") == page.count(b"<svg") > 10
    assert console(log) == []


def test_plots_have_room_and_pages_do_not_overflow(
    browser: str, page: bytes, tmp_path: pathlib.Path
) -> None:
    text = html.escape(page.decode(), quote=True)
    frames = "".join(
        f'<iframe width="{width}" height="900" srcdoc="{text}"></iframe>'
        for width in WIDTHS
    )
    path = tmp_path / "frames.html"
    path.write_text(FRAMES % frames)
    document, log = visit(browser, path, tmp_path)
    assert console(log) == []
    found = re.search(r'<pre id="found">(.+?)</pre>', document)
    assert found is not None
    measured: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    for width in WIDTHS:
        one = measured[str(width)]
        assert one["scroll"] <= one["inner"] <= width
        assert len(one["svgs"]) == page.count(b"<svg")
        least = 500 if width == WIDTHS[0] else 300
        assert all(wide >= least and high >= 50 for wide, high in one["svgs"])
        assert len(one["marks"]) == page.count(b"--mark-")
        assert all(wide + high > 0 for wide, high in one["marks"])
        assert one["text_px"] >= 8
