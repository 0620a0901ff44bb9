"""What operators see: dashboard, request ids, log lines, traces, open requests."""

import dataclasses
import io
import itertools
import json
import logging
import re
import subprocess
import sys
import types

import pytest
from absl import logging as absl_logging
from prometheus_client.parser import text_string_to_metric_families

from jserve.records.events import PredictorStatus, QueueFullError
from jserve.server.logs import set_up_logs
from jserve.server.tracing import check_tracing
from jserve.server_config import ServerConfig
from tests import ROOT
from tests.fake_loop import FakeLoop
from tests.fake_server import serve_fake

OTLP = "opentelemetry.exporter.otlp.proto.http"
LOGGER = logging.getLogger("jserve")


def busy_loop(num_waiting=0, **options) -> FakeLoop:
    """A loop whose statistics have a value for everything that is optional."""
    loop = FakeLoop(**options)
    errors = {"median_error": 0.4, "p95_coverage": 0.9, "bias": 0.1}
    status = PredictorStatus(kinds={"decode": errors | {"predictor": "mlp"}})
    fields = {"predictor": status, "is_recording": True, "num_waiting": num_waiting}
    stats = loop.stats
    loop.stats = lambda: dataclasses.replace(  # type: ignore[method-assign]
        stats(), **fields
    )
    return loop


def test_dashboard_and_page_for_the_one_on_call_name_what_is_scraped() -> None:
    with serve_fake(busy_loop()) as served:
        assert served.complete(max_tokens=2, slo={"ttft_s": 9}).status == 200
        served.loop.refusals = iter([QueueFullError("full", 1.0)])
        assert served.complete().status == 429
        text = served.get("/metrics").body.decode()
    families = list(text_string_to_metric_families(text))
    samples = itertools.chain.from_iterable(family.samples for family in families)
    labels = {sample.name: set(sample.labels) for sample in samples}
    for panel in json.loads((ROOT / "docs/grafana.json").read_text())["panels"]:
        assert panel["targets"]
        for one in " / ".join(row["expr"] for row in panel["targets"]).split(" / "):
            (name,) = re.findall(r"(?:vllm|jserve):\w+", one)
            grouped = " ".join(re.findall(r"by \((.*?)\)", one))
            used = re.findall(r"(\w+)=", one) + re.findall(r"\w+", grouped)
            assert "model_name" in used and set(used) <= labels[name], one
    page = (ROOT / "docs/on_call.md").read_text()
    named = set(re.findall(r"(?:vllm|jserve):\w+", page))
    assert named and named <= set(labels) | {one.name for one in families}


@pytest.fixture
def lines():
    """Reads log lines in the form that a configuration has set up."""
    handler, level = absl_logging.get_absl_handler().python_handler, LOGGER.level
    formatter, written = handler.formatter, logging.StreamHandler(io.StringIO())

    def begin(**config):
        set_up_logs(ServerConfig(**config))
        written.setFormatter(handler.formatter)
        LOGGER.addHandler(written)
        return lambda: written.stream.getvalue().splitlines()

    yield begin
    LOGGER.removeHandler(written)
    LOGGER.setLevel(level)
    handler.setFormatter(formatter)


def test_every_answer_and_its_log_lines_have_the_id_of_the_request(lines) -> None:
    read = lines(log_format="json")
    with serve_fake(access_log=True) as served:
        given = {"x-request-id": "mine-1"}
        answer = served.complete(max_tokens=1, headers=given)
        own = served.complete(max_tokens=1)
        assert own.headers["x-request-id"] == own.json()["id"]
        lost = served.get("/nowhere%0a", given)
        assert answer.headers["x-request-id"] == "mine-1"
        assert lost.headers["x-request-id"] == "mine-1"
        for forged in ("a b", "é", "x" * 129):
            headers = {"x-request-id": forged}
            found = served.get("/health", headers).headers["x-request-id"]
            assert found.startswith("req-")
    first, second, third, *_ = map(json.loads, read())
    assert first["request_id"] == "mine-1" and second["request_id"] == own.json()["id"]
    assert first["answer_id"] == answer.json()["id"] and 0 < first["duration_s"] < 60
    assert (first["method"], first["path"]) == ("POST", "/v1/completions")
    assert (first["status"], third["status"]) == (200, 404)


def test_plain_lines_have_a_level_and_no_access_log_unless_asked_for(lines) -> None:
    read = lines(log_level="warning")
    for level, is_logged in (("", True), ("INFO", False), ("INFO", True)):
        assert not any("/health" in one for one in read())
        LOGGER.setLevel(level or LOGGER.level)
        with serve_fake(access_log=is_logged) as served:
            served.get("/health", {"x-request-id": "mine-2"})
    (line,) = (one for one in read() if "/health" in one)
    assert "GET '/health' 200 0." in line and line.endswith(" s [mine-2]")


def test_a_request_is_a_trace_of_its_phases_below_its_client(monkeypatch) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter, otlp = sdk.InMemorySpanExporter(), types.ModuleType(OTLP)
    kinds = types.SimpleNamespace(OTLPSpanExporter=lambda **options: exporter)
    otlp.trace_exporter = kinds  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, OTLP, otlp)
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace_id}-{parent_id}-01", "x-request-id": "mine"}
    with serve_fake(otlp_endpoint="http://collector/v1/traces") as served:
        served.complete(max_tokens=3, slo={"ttft_s": 9, "tbt_s": 9}, headers=headers)
    *phases, root = exporter.get_finished_spans()
    assert [one.name for one in phases] == ["queue", "prefill", "decode"]
    assert f"{root.context.trace_id:032x}" == trace_id
    assert f"{root.parent.span_id:016x}" == parent_id
    assert {one.parent.span_id for one in phases} == {root.context.span_id}
    marks = [root.start_time, *(one.start_time for one in phases)]
    ends = [*(one.end_time for one in phases), root.end_time]
    assert marks[0] == marks[1] < marks[2] == ends[0] < ends[1] == marks[3]
    assert ends[1] < ends[2] <= ends[3] < ends[0] + 60e9
    for name, value in {
        "jserve.request_id": "mine",
        "jserve.slo.ttft_s": 9,
        "jserve.slo.attained": True,
        "gen_ai.usage.output_tokens": 3,
    }.items():
        assert root.attributes[name] == value


def test_opentelemetry_is_imported_only_when_asked_for(monkeypatch) -> None:
    code = "import sys, jserve.server.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "jserve.server.tracing" in done.stdout
    assert "opentelemetry.sdk" not in done.stdout
    monkeypatch.setitem(sys.modules, OTLP, None)
    with pytest.raises(ValueError, match="otlp_endpoint='http://a' needs the extra"):
        check_tracing("http://a")


def test_a_model_name_that_is_no_utf8_is_escaped_everywhere() -> None:
    with serve_fake(served_model_name=("caf\udce9",)) as served:
        name = served.get("/v1/models").json()["data"][0]["id"]
        assert name == served.get("/jserve/info").json()["model"] == r"caf\udce9"
        assert served.complete(model=name, max_tokens=1).json()["model"] == name
        assert served.get("/metrics").status == 200


def test_open_requests_are_listed_by_their_next_deadline() -> None:
    loop = FakeLoop()
    loop.running.clear()
    with serve_fake(loop) as served:
        bounds = ({"ttft_s": 9}, None, {"ttft_s": 3})
        sockets = [served.send(slo=slo) for slo in bounds]
        assert loop.wait_live(3)
        page = served.get("/jserve/requests?limit=2").json()
        first, second = page["requests"]
        assert page["num_requests"] == 3 and first["state"] == "waiting"
        assert first["deadline_s"] == pytest.approx(first["arrival_s"] + 3)
        assert second["deadline_s"] == pytest.approx(second["arrival_s"] + 9)
        assert first["ttft_s"] == [5.0, 10.0] and first["chance"] == 0.5
        last = served.get("/jserve/requests").json()["requests"][-1]
        assert last["deadline_s"] is None
        for sock in sockets:
            sock.close()
