"""The live page in a real browser, of a server under load; needs Chromium."""

import pytest

from tests.browser import found_in_frame, visit
from tests.fake_server import read_until, serve_fake
from tests.jserve.server.operators_test import busy_loop

pytestmark = pytest.mark.browser

MEASURE = """<script type="module">
while (document.body.dataset.looked !== "1") {
  await new Promise((go) => setTimeout(go, 20));
}
const texts = ["says", "more", "slo", "kinds", "waiting-text", "kv-text", "queue"];
const bars = [...document.querySelectorAll("svg .used")];
parent.postMessage(JSON.stringify({
  width: innerWidth,
  scroll: document.documentElement.scrollWidth,
  ink: getComputedStyle(document.body).color,
  text: texts.map((id) => document.getElementById(id).textContent).join(" | "),
  forged: document.querySelectorAll("#slo b").length,
  bars: bars.filter((bar) => bar.getBoundingClientRect().height > 1).length,
}), "*");
</script>"""


@pytest.fixture(scope="module")
def overloaded(tmp_path_factory):
    """A server at whose four slots twelve requests have come, of which eight wait."""
    classes = tmp_path_factory.mktemp("classes") / "classes.json"
    classes.write_text('[{"name": "<b>chat</b>", "ttft_s": 1e-6}]')
    loop = busy_loop(step_s=0.01, num_slots=4, num_waiting=8)
    steps = loop.steps
    loop.steps = lambda since=0: [  # type: ignore[method-assign]
        one._replace(num_waiting=8) for one in steps(since)
    ]
    names = {"service_classes": classes, "default_service_class": "<b>chat</b>"}
    with serve_fake(loop, cors_origins=("*",), **names) as served:
        assert served.complete(max_tokens=30).status == 200
        sockets = [served.send(max_tokens=500) for _ in range(12)]
        read_until(sockets[0], b"data: ")
        loop.step_s = 0.2  # so that none ends soon
        yield served
        for sock in sockets:
            sock.close()


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_says_what_is_wrong_and_fits(overloaded, width, is_dark, tmp_path) -> None:
    base = f'<base href="{overloaded.url}/"><title>'
    page = overloaded.get("/").body.decode().replace("<title>", base) + MEASURE
    found = found_in_frame(page, tmp_path, width=width, is_dark=is_dark)
    assert found["scroll"] <= found["width"] == width
    assert found["ink"] == ("rgb(232, 234, 237)" if is_dark else "rgb(29, 31, 35)")
    for text in (
        *(
            "8 requests wait, for at least ",
            "8 of 12 open requests are late",
            "late by",
        ),
        *("<b>chat</b>", "decodemlp", "8 waited", "8 of 32"),
    ):
        assert text in found["text"]
    assert found["forged"] == 0 and found["bars"] > 90


def test_it_runs_under_its_own_policy(overloaded, tmp_path) -> None:
    answer = overloaded.get("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    go = f'<script>location.href = "{overloaded.url}/"</script>'
    document, console = visit(go, tmp_path)
    assert console == [] and "8 requests wait" in document
