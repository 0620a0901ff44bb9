"""Health, metrics, overload, leaving clients, and the end of a server."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from jserve.config import EngineConfig
from jserve.progress import Stage
from jserve.records.events import Health, StartUp
from jserve.server.serving import FAILED_STATUS
from jserve_sched.requests.request import FinishReason
from tests import TESTS
from tests.fake_loop import FakeLoop
from tests.fake_server import Answer, Served, read_until, serve_fake

SERVING = (Health.READY, Health.WARM)


def metrics(served):
    lines = served.get("/metrics").body.decode().splitlines()
    rows = (one.rsplit(" ", 1) for one in lines if not one.startswith("#"))
    return {name: float(value) for name, value in rows}


def wait_for(condition, timeout_s=5.0):
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_health_and_what_a_request_hears():
    with serve_fake() as served:
        served.loop.start_up = StartUp(stage=Stage("timing programs", 3, 5, 1.5))
        for health in (Health.STARTING, Health.DRAINING, Health.FAILED, *SERVING):
            served.loop.health = health
            is_ready = health in SERVING
            answer = served.get("/health")
            assert answer.status == (200 if is_ready else 503)
            assert answer.json() == {
                "status": health.value,
                "alive": True,
                "ready": is_ready,
                "warm": health is Health.WARM,
                **{"phase": "timing programs", "done": 3, "left": 5, "seconds": 1.5},
            }
            assert served.get("/health/live").status == 200
            answer = served.complete(max_tokens=1)
            assert answer.status == (200 if is_ready else 503)
            if not is_ready:
                assert answer.headers["retry-after"] == "5"
                assert health.value in answer.error["message"]
                assert answer.error["type"] == "service_unavailable_error"
        label = 'model_name="fake",reason="not_serving"'
        assert metrics(served)[f"jserve:requests_rejected_total{{{label}}}"] == 3


def test_overload_is_429_with_retry_after_for_all_or_none():
    config = EngineConfig(max_queued_requests=3)
    with serve_fake(FakeLoop(config=config)) as served:
        served.loop.running.clear()
        with served.send(n=2):
            assert served.loop.wait_live(2)
            answer = served.complete(n=2, slo={"ttft_ms": 100})
            assert answer.status == 429
            assert answer.headers["retry-after"] == "3"
            assert answer.error["type"] == "rate_limit_error"
            assert served.loop.num_live() == 2
            assert len(served.loop.cancelled) == 1
            served.loop.running.set()
            assert served.loop.wait_idle()
        rows = metrics(served)
        label = 'model_name="fake",reason="queue_full"'
        assert rows[f"jserve:requests_rejected_total{{{label}}}"] == 2
        label = 'met="false",model_name="fake",service_class="custom"'
        assert rows[f"jserve:slo_requests_total{{{label}}}"] == 2


def test_a_stream_that_has_begun_is_refused_by_an_event_and_others_by_a_status(
    tmp_path,
):
    classes = tmp_path / "classes.json"
    classes.write_text('[{"name": "chat", "ttft_s": 9, "admission": "refuse"}]')
    with serve_fake(sse_keep_alive_s=0.05, service_classes=classes) as served:
        served.loop.running.clear()
        asked: dict[str, Any] = {"service_tier": "chat", "n": 2}
        with served.send(**asked, stream=True) as begun:
            head = read_until(begun, b": keep-alive")
            assert head.startswith(b"HTTP/1.1 200")
            served.loop.refuse(FinishReason.EXPIRED)
            events = read_until(begun, b"[DONE]")
            assert events.count(b'"code": "queue_wait"') == 2
        with served.send(**asked, stream=False) as waiting:
            assert served.loop.wait_live(2)
            served.loop.refuse(FinishReason.REFUSED, most=1)  # the other, with it
            answer = read_until(waiting, b'"retry_after_s": 1.5')
            assert answer.startswith(b"HTTP/1.1 429")
            assert b"retry-after: 2\r\n" in answer.lower()
        rows = metrics(served)
        label = 'model_name="fake",reason="unattainable",service_class="chat"'
        assert rows[f"jserve:requests_not_admitted_total{{{label}}}"] == 2
        label = 'met="false",model_name="fake",service_class="chat"'
        assert rows[f"jserve:slo_requests_total{{{label}}}"] == 4


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_all_its_requests(stream):
    with serve_fake(FakeLoop(step_s=0.01)) as served:
        with served.send(n=3, max_tokens=500, stream=stream) as sock:
            assert served.loop.wait_live(3)
            if stream:
                assert sock.recv(65536)
        assert served.loop.wait_idle(2.0)
        assert len(served.loop.cancelled) == 3
        label = 'finished_reason="abort",model_name="fake"'
        rows = metrics(served)
        assert rows[f"vllm:request_success_total{{{label}}}"] == 3
        # In time when its client left: neither kept nor broken.
        assert not any(name.startswith("jserve:slo_requests") for name in rows)
        assert served.complete(max_tokens=1).status == 200


def test_a_stream_that_waits_gets_comments_which_are_no_output():
    with serve_fake(sse_keep_alive_s=0.05) as served:
        served.loop.running.clear()
        with served.send(max_tokens=3) as sock:
            received = read_until(sock, b": keep-alive\n\n")
            received += read_until(sock, b": keep-alive\n\n")
            assert received.count(b'"text": ') < 3  # the rest waits
            served.loop.running.set()
            received += read_until(sock, b"0\r\n\r\n")
            assert received.count(b'"text": ') == 3
        label = 'vllm:generation_tokens_total{model_name="fake"}'
        assert metrics(served)[label] == 3


def test_a_client_that_reads_late_gets_all_in_order():
    with serve_fake(FakeLoop("0123456789", step_s=0.0)) as served:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", served.port))
            fields = {"prompt": "a", "stream": True, "n": 64, "max_tokens": 300}
            body = json.dumps(fields).encode()
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
            sock.sendall(head % len(body) + b"\r\n" + body)
            assert served.loop.wait_idle()
            with http.client.HTTPResponse(sock) as response:
                response.begin()
                answer = Answer(200, {}, response.read())
        texts = [""] * 64
        for chunk in answer.chunks():
            texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        assert texts == ["0123456789" * 30] * 64


def test_metrics_have_vllms_names():
    with serve_fake() as served:
        served.complete(max_tokens=4, slo={"ttft_s": 10, "tbt_s": 10})
        served.complete(max_tokens=4, slo={"ttft_ms": 1e-6})
        rows = metrics(served)
        model = 'model_name="fake"'
        expected = {
            "vllm:num_requests_running": 0,
            "vllm:kv_cache_usage_perc": 0.25,
            "vllm:prompt_tokens_total": 4,
            "vllm:generation_tokens_total": 8,
            "vllm:num_preemptions_total": 1,
            "vllm:prefix_cache_hits_total": 3,
            "jserve:compiles_after_warmup_total": 0,
            "vllm:time_to_first_token_seconds_count": 2,
            "vllm:inter_token_latency_seconds_count": 6,
            "vllm:e2e_request_latency_seconds_count": 2,
            "vllm:request_decode_time_seconds_count": 2,
            "vllm:request_time_per_output_token_seconds_count": 2,
            "vllm:iteration_tokens_total_sum": 8 * 11,
            "jserve:predictor_error_ratio_sum": 8,
            "jserve:step_tokens_total": 8 * 40,
            "jserve:pad_tokens_total": 8 * (40 - 1 - 10),
        }
        found = {name: rows[f"{name}{{{model}}}"] for name in expected}
        assert found == expected
        label = f'finished_reason="length",{model}'
        assert rows[f"vllm:request_success_total{{{label}}}"] == 2
        for met in ("true", "false"):
            label = f'met="{met}",{model},service_class="custom"'
            assert rows[f"jserve:slo_requests_total{{{label}}}"] == 1
        assert metrics(served)[f"jserve:step_tokens_total{{{model}}}"] == 8 * 40
        pool = f'block_size="128",{model},num_gpu_blocks="32"'
        assert rows[f"vllm:cache_config_info{{{pool}}}"] == 1
        assert not any("_created" in name for name in rows)


def test_steps_come_in_pages():
    with serve_fake() as served:
        served.complete(max_tokens=10)
        page = served.get("/jserve/steps?since=2&limit=5").json()
        assert [one["step_id"] for one in page["steps"]] == [2, 3, 4, 5, 6]
        assert (page["next"], page["has_more"]) == (7, True)
        assert page["steps"][0]["duration_s"] == 0.001
        page = served.get("/jserve/steps?since=7").json()
        assert (page["next"], page["has_more"]) == (10, False)
        assert page["now_s"] >= page["steps"][-1]["end_s"]
        assert served.get("/jserve/steps?since=10").json()["steps"] == []
        assert served.get("/jserve/steps?limit=20001").status == 400


def test_steps_say_what_they_mean_and_come_as_a_trace():
    with serve_fake() as served:
        served.complete(max_tokens=10)
        step = served.get("/jserve/steps").json()["steps"][0]
        assert served.get("/jserve/steps/fields").json().keys() == step.keys()
        trace = served.get("/jserve/steps?format=chrome&limit=4").json()
        slices = [one for one in trace["traceEvents"] if one["ph"] == "X"]
        assert [one["args"]["step_id"] for one in slices] == [6, 7, 8, 9]
        assert served.get("/jserve/steps?format=svg").status == 400


def test_info_says_what_was_measured():
    names = ("my/model", "mine")
    with serve_fake(served_model_name=names, drain_timeout_s=5.0) as served:
        for name in names:
            assert served.complete(model=name, max_tokens=2).json()["model"] == names[0]
        listed = served.get("/v1/models").json()["data"]
        assert [one["id"] for one in listed] == list(names)
        assert served.complete(model="fake").status == 404
        assert served.get("/v1/models/my/model").json()["id"] == "my/model"
        info = served.get("/jserve/info").json()
        assert info["model"] == "my/model"
        assert info["engine"]["policy"] == "ontime"
        assert info["server"]["drain_timeout_s"] == 5.0
        assert info["stats"]["health"] == "warm"
        assert served.get("/version").json()["version"] == info["versions"]["jserve"]


def test_the_description_names_what_is_accepted(served):
    found = served.get("/openapi.json").json()
    schemas = found["components"]["schemas"]
    assert schemas["ChatRequest"]["required"] == ["messages"]
    assert "slo" in schemas["CompletionRequest"]["properties"]
    assert "/jserve/predict" in found["paths"] and "/metrics" in found["paths"]
    assert served.get("/docs").status == 200


SERVER = """
import pathlib, sys, threading
from tests.fake_loop import FakeLoop
from jserve.server_config import ServerConfig
from jserve.server import app as app_module, serving
from jserve.text.tokenizer import load_tokenizer
def script(request):
    if len(request.prompt_tokens) == 1 and len(request.output_tokens) == 2:
        raise RuntimeError("the device has gone")
    return b"hello "
config = ServerConfig(port=0, drain_timeout_s=float(sys.argv[1]))
loop = FakeLoop(script, step_s=0.02)
if sys.argv[2] == "stuck":
    app_module._STOP_TIMEOUT_S = 0.1
    stuck = threading.Event()
    threading.Thread(target=stuck.wait).start()
    loop.stop = stuck.wait
if sys.argv[2] == "deaf":
    serving._FLUSH_TIMEOUT_S = 0.1
    loop.drain = lambda timeout_s: False
if sys.argv[2] == "hung":
    serving._FORCE_S = 0.3
    loop.drain = lambda timeout_s: threading.Event().wait()
folder = pathlib.Path(sys.argv[3]) if sys.argv[3:] else None
app = app_module.build_app(loop, load_tokenizer(folder), config)
with serving.bind(config) as listener:
    print(serving.url_of(listener), flush=True)
    sys.exit(serving.serve(app, loop, config, listener))
"""


class Process:
    def __init__(self, drain_timeout_s, kind="sound", *folder):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(drain_timeout_s), kind, *folder],
            cwd=TESTS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        port = int(self.process.stdout.readline().rsplit(":", 1)[1])
        loop: Any = None  # stays behind in the other process
        self.client = Served(loop, port)
        wait_for(self.is_up)

    def is_up(self):
        try:
            return self.client.get("/health").status == 200
        except OSError:
            return False

    def end(self):
        output, errors = self.process.communicate(timeout=10)
        return self.process.returncode, output + errors

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.communicate()


def test_a_signal_drains_and_exits_with_0():
    with Process(5.0) as one, one.client.send(max_tokens=40) as sock:
        received = sock.recv(65536).decode()
        one.process.send_signal(signal.SIGTERM)
        wait_for(lambda: one.client.get("/health").status == 503)
        assert one.client.get("/health").json()["status"] == "draining"
        assert one.client.complete(max_tokens=1).status == 503
        received += sock.makefile().read()
        assert received.count('"text": ') == 40
        assert '"finish_reason": "length"' in received
        assert "[DONE]" in received
        assert one.end()[0] == 0


def test_a_drain_is_bounded():
    with Process(0.2) as one, one.client.send(max_tokens=500) as sock:
        assert sock.recv(65536)
        one.process.send_signal(signal.SIGTERM)
        received = sock.makefile().read()
        assert '"code": "shutdown"' in received and "[DONE]" in received
        assert '"finish_reason": "' not in received
        assert one.end()[0] == 0


@pytest.mark.parametrize("kind", ["sound", "stuck"])
def test_a_failed_engine_ends_the_process_once_all_have_heard(kind):
    with (
        Process(60.0, kind) as one,
        one.client.send(max_tokens=500) as bystander,
        one.client.send(prompt="!", max_tokens=500) as culprit,
    ):
        for sock in (bystander, culprit):
            received = read_until(sock, b"[DONE]")
            assert b"the device has gone" in received
            assert b'"type": "server_error"' in received
        start_s = time.monotonic()
        answer = one.client.get("/health")
        assert (answer.status, answer.json()["status"]) == (503, "failed")
        assert one.client.complete(max_tokens=1).status == 503
        status, output = one.end()
        assert status == FAILED_STATUS != 0
        assert ("still busy" in output) == (kind == "stuck")
        assert time.monotonic() - start_s < 30  # much less than the drain may take


def test_a_stream_that_does_not_end_gets_an_error_and_not_a_closed_socket():
    with Process(0.1, "deaf") as one, one.client.send(max_tokens=500) as sock:
        assert sock.recv(65536)
        one.process.send_signal(signal.SIGTERM)
        received = read_until(sock, b"0\r\n\r\n")
        assert b'"type": "service_unavailable_error"' in received
        assert received.count(b"[DONE]") == 1
        assert one.end()[0] == 0


def test_a_process_that_hangs_after_its_drain_ends_by_force():
    with Process(0.1, "hung") as one:
        one.process.send_signal(signal.SIGTERM)
        status, output = one.end()
        assert status == 1
        assert "Timeout" in output


def test_a_second_interrupt_ends_at_once():
    with Process(60.0) as one, one.client.send(max_tokens=500) as sock:
        assert sock.recv(65536)
        one.process.send_signal(signal.SIGINT)
        wait_for(lambda: one.client.get("/health").status == 503)
        one.process.send_signal(signal.SIGINT)
        assert one.end()[0] == 128 + signal.SIGINT
