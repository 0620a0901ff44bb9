import json

import pytest

from jserve.server.slo_input import load_service_classes
from jserve.server_config import ServerConfig
from tests.fake_server import serve_fake

CLASSES = [
    {"name": "chat", "ttft_s": 2.0, "tbt_s": 0.1, "guard": True, "weight": 4},
    {"name": "batch", "ttlt_s": 60},
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path = tmp_path_factory.mktemp("classes") / "classes.json"
    path.write_text(json.dumps(CLASSES))
    with serve_fake(service_classes=path, default_service_class="batch") as served:
        yield served


BODY = {"ttft_ms": 500, "tpot_ms": 20, "ttlt_s": 9}
HEADERS = {"X-SLO-TTFT-MS": "300", "x-slo-tpot-ms": "10.5"}


@pytest.mark.parametrize(
    ("slo", "headers", "tier", "bounds", "name"),
    [
        (BODY, HEADERS, "chat", (0.5, 0.02, 9), "chat"),
        ({"ttft_s": 1, "tbt_ms": 7}, {}, None, (1, 0.007, None), "custom"),
        ({}, HEADERS, None, (None, None, None), "custom"),
        (None, HEADERS, None, (0.3, 0.0105, None), "custom"),
        (None, {}, "chat", (2.0, 0.1, None), "chat"),
        (None, {}, "best_effort", (None, None, None), "best_effort"),
        (None, {}, "auto", (None, None, 60), "batch"),
        (None, {}, "priority", (None, None, 60), "batch"),
        (None, {}, "flex", (None, None, None), "best_effort"),
        (
            None,
            {"x-slo-ttft-s": "2", "x-llm-d-slo-tpot-us": "900"},
            None,
            (2, 9e-4),
            "",
        ),
        (None, {"x-sgl-ttft-slo-ms": "40"}, None, (0.04, None), ""),
        (None, {"x-slo-ttft-ms": "9", "x-slo-tbt-s": "1"}, None, (0.009, 1), ""),
        (None, {"x-slo-ttlt-s": "3"}, None, (None, None, 3), ""),
        (None, {}, None, (None, None, 60), "batch"),
    ],
)
def test_the_first_source_that_says_anything_decides(
    served, slo, headers, tier, bounds, name
):
    fields = {"slo": slo, "service_tier": tier, "max_tokens": 1}
    assert served.complete(headers=headers, **fields).status == 200
    request = served.loop.seen[-1]
    objectives = (request.slo.ttft_s, request.slo.tbt_s, request.slo.ttlt_s)
    assert objectives == pytest.approx((*bounds, None)[:3])
    assert request.service_class == (name or "custom")
    assert request.guard == (name == "chat")
    assert request.weight == (4 if name == "chat" else 1)


def test_what_was_understood_is_echoed_with_what_became_of_it(served):
    answer = served.complete(
        max_tokens=3, nvext={"router": {"ttft_target": 8000, "itl_target": 20.5}}
    )
    echo = 'class="custom", ttft_s=8.000000, tbt_s=0.020500'
    assert answer.headers["x-jserve-slo"] == echo
    found = answer.json()["usage"]["slo"]
    assert found["attained"] is True
    assert 0 <= found["queue_s"] <= found["ttft_s"] < 8
    assert 0 < found["worst_gap_s"] < 0.0205
    answer = served.complete(max_tokens=2, n=2, slo={"ttft_ms": 1e-3})
    assert answer.json()["usage"]["slo"]["attained"] is False
    answer = served.complete(max_tokens=2, service_tier="best_effort")
    assert answer.headers["x-jserve-slo"] == 'class="best_effort"'
    assert "slo" not in answer.json()["usage"]


def test_a_header_of_an_unknown_unit_is_refused(served):
    answer = served.complete(max_tokens=1, headers={"x-slo-ttft-min": "1"})
    assert answer.status == 400
    assert "'x-slo-ttft-min' is not one of x-slo-ttft-s," in answer.error["message"]


def test_the_last_token_cannot_be_due_before_the_first(served):
    late = {"x-slo-ttft-s": "2", "x-slo-ttlt-ms": "1001"}
    for fields, headers, param in (
        ({"slo": {"ttft_s": 2, "ttlt_ms": 1001}}, {}, "slo"),
        ({}, late, "x-slo-ttft-s and x-slo-ttlt-ms"),
    ):
        answer = served.complete(max_tokens=1, headers=headers, **fields)
        assert (answer.status, answer.error["param"]) == (400, param)
        assert answer.error["message"] == f"{param}: ttlt_s=1.001 is below ttft_s=2"
    same = {"ttft_s": 1.001, "ttlt_ms": 1001}
    assert served.complete(max_tokens=1, slo=same).status == 200


@pytest.mark.parametrize(
    ("text", "default", "words"),
    [
        ('[{"name": "a", "ttft_slowdown": 5}]', "a", "ttft_slowdown=5"),
        ('[{"name": "a", "ttft_s": 1}]', "b", "default_service_class='b'"),
        ('[{"name": "a", "ttft_s": -1}]', "a", "-1"),
        ("{", "a", "JSON"),
        (None, "a", "classes.json"),
    ],
)
def test_classes_that_cannot_be_served(tmp_path, text, default, words):
    path = tmp_path / "classes.json"
    if text is not None:
        path.write_text(text)
    config = ServerConfig(service_classes=path, default_service_class=default)
    with pytest.raises(ValueError, match=words):
        load_service_classes(config)


def test_a_priority_comes_from_the_body_or_else_from_a_header(served):
    headers = {"X-Vllm-Priority": "-3"}
    for fields, priority in (({}, -3), ({"priority": 2}, 2)):
        assert served.complete(headers=headers, max_tokens=1, **fields).status == 200
        assert served.loop.seen[-1].priority == priority
    for value in ("1.5", "99999999999"):
        answer = served.complete(headers={"X-Vllm-Priority": value})
        assert (answer.status, answer.error["param"]) == (400, "x-vllm-priority")
    assert served.complete(priority=2**31).error["param"] == "priority"
