"""Opens pages in Chromium, at a desk's width and at a phone's."""

import html
import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--disable-sync", "--disable-background-networking", "--no-first-run"),
    *("--disable-component-update", "--enable-logging=stderr", "--v=0"),
)
# A window is never as narrow as a phone, a frame is.
FRAME = """<meta name="color-scheme" content="light dark"><pre id="found"></pre><script>
const found = document.getElementById("found");
addEventListener("message", (event) => { found.textContent = event.data; });
</script><iframe src="report.html" width="%d" height="900" frameborder="0"></iframe>"""


def visit(page: str, folder: pathlib.Path, *options: str) -> tuple[str, list[str]]:
    """Opens a page; returns its document in the end, and the console's lines."""
    assert BROWSER, "neither chromium nor google-chrome is on the path"
    path = folder / "page.html"
    path.write_text(page)
    done = subprocess.run(
        [
            *(BROWSER, *QUIET, *options, f"--user-data-dir={folder / 'profile'}"),
            *("--virtual-time-budget=60000", "--dump-dom", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def found_in_frame(
    page: str, folder: pathlib.Path, *, width: int, is_dark: bool
) -> dict[str, Any]:
    """Opens a page that posts JSON to its parent, without an error; returns that."""
    (folder / "report.html").write_text(page)
    document, console = visit(
        FRAME % width,
        folder,
        "--window-size=1400,1000",
        f"--blink-settings=preferredColorScheme={0 if is_dark else 1}",
    )
    assert console == []
    text = re.search(r'<pre id="found">(.+?)</pre>', document)
    assert text is not None
    found: dict[str, Any] = json.loads(html.unescape(text[1]))
    return found
