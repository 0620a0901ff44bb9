"""Every refusal: a 4xx in OpenAI's form that names value and limit."""

import json
import socket
from typing import Any

import pytest


def post(served, body, path="/v1/completions"):
    return served.request("POST", path, body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", ["not JSON"]),
        (b'{"prompt": "a",}', ["not JSON"]),
        (b'{"prompt": ' + b"[" * 5000, ["must be"]),  # at the third bracket
        (b'{"prompt": "a", "x": ' + b"[" * 5000, ["not JSON", "nested too deeply"]),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", ["out of range"]),
        (
            b'{"prompt": "a"' + b', "x%d": 1' * 600 % (*range(600),) + b"}",
            ["601", "512"],
        ),
        (b"[1, 2]", ["must be a JSON object"]),
        (b'{"prompt": "\xff"}', ["not UTF-8", "0xff", "offset 12"]),
        (b"{}", ["prompt is missing"]),
    ],
)
def test_a_body_that_is_none(served, body, words):
    answer = post(served, body)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    for word in words:
        assert word in answer.error["message"]


def test_a_path_is_quoted_in_part(served):
    answer = served.get("/" + "a" * 5000)
    assert answer.status == 404
    assert len(answer.error["message"]) < 200


def test_a_client_that_leaves_midway(served):
    for text in (b"", b"Content-Length: 99\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as sock:
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + text)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"max_tokens": 0}, "max_tokens", ["=0", "integer >= 1"]),
        ({"max_tokens": 511}, "max_tokens", ["511", "510", "512"]),
        ({"max_tokens": 10**400}, "max_tokens", ["510", "512"]),
        ({"prompt": "a" * 512}, "prompt", ["512"]),
        ({"prompt": [1] * 600}, "prompt", ["600", "512"]),
        ({"prompt": ""}, "prompt", ["empty"]),
        ({"prompt": [[1], []]}, "prompt", ["empty"]),
        ({"prompt": [True, 1]}, "prompt", ["must be"]),
        ({"prompt": [1, "a"]}, "prompt", ["must be"]),
        ({"prompt": [-1]}, "prompt", ["-1", "0..319"]),
        ({"prompt": [2**70]}, "prompt", [str(2**70), "0..319"]),
        ({"n": 129}, "n", ["129", "<= 128"]),
        ({"n": 100, "prompt": ["a"] * 11}, "n", ["1100", "1024"]),
        ({"best_of": 2}, "best_of", ["best_of=2", "n=1"]),
        ({"min_tokens": 17}, "min_tokens", ["17", "0..16"]),
        ({"temperature": -0.1}, "temperature", ["-0.1", "0..100"]),
        ({"top_p": 0}, "top_p", ["(0, 1]"]),
        ({"top_k": -2}, "top_k", ["-2"]),
        ({"stop": ["a"] * 17}, "stop", ["<= 16"]),
        ({"stop": ""}, "stop", [">= 1"]),
        ({"stop": ["b", "a" * 257]}, "stop.1", ["<= 256"]),
        ({"stop_token_ids": [320]}, "stop_token_ids", ["320", "0..319"]),
        ({"stop": ["a", 5]}, "stop.1", ["=5", "a string"]),
        ({"stream": 1}, "stream", ["=1", "true or false"]),
        ({"user": "a" * 5000}, "user", ["<= 4096"]),
        ({"stop_token_ids": [*range(7)]}, "stop_token_ids", ["7 ids", "9", "is 8"]),
        ({"stream_options": {}}, "stream_options", ["stream=true"]),
        ({"slo": "fast"}, "slo", ["'fast'"]),
        ({"slo": {"ttft": 1}}, "slo.ttft", ["ttft is unknown", "ttft_ms"]),
        ({"slo": {"at `$.x[0]": 1}}, "slo.at `$.x[0]", ["is unknown"]),
        ({"slo": {"x - at `$.x[0]": 1}}, "slo.x - at `$.x[0]", ["is unknown"]),
        ({"slo": {"a" * 5000: 1}}, "slo." + "a" * 80, ["is unknown"]),
        ({"slo": {"ttft_ms": 0}}, "slo.ttft_ms", ["=0", "> 0"]),
        ({"slo": {"ttft_s": 86401}}, "slo.ttft_s", ["86401", "86400"]),
        ({"slo": {"tbt_ms": 20}}, "slo", ["needs ttft_s"]),
        ({"slo": {"ttft_s": 1, "ttft_ms": 1000}}, "slo", ["twice"]),
        ({"service_tier": "gold"}, "service_tier", ["'gold'", "best_effort", "auto"]),
    ],
)
def test_a_value_out_of_its_limits(served, fields, param, words):
    answer = served.complete(**fields)
    assert answer.status == 400, answer
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["param"] == param
    for word in words:
        assert word in answer.error["message"], answer.error
    assert len(answer.error["message"]) < 400


@pytest.mark.parametrize(
    ("name", "value"), [("x-slo-ttft-ms", "soon"), ("x-slo-tpot-ms", "-5")]
)
def test_a_bad_header(served, name, value):
    answer = served.complete(headers={name: value})
    assert answer.status == 400
    assert answer.error["param"] == name
    assert value in answer.error["message"]


REFUSED = {
    "functions": [{"name": "f"}],
    "suffix": "b",
    "json_schema": {},
    "modalities": ["text", "audio"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_the_answer_is_refused_by_name(served, name):
    for send in (served.complete, served.chat):
        answer = send(**{name: REFUSED[name]})
        assert answer.status == 400
        assert answer.error["param"] == name
        assert answer.error["code"] == "unsupported_parameter"
        assert name in answer.error["message"]


def test_a_completion_has_no_fields_of_chats(served):
    tools = [{"type": "function", "function": {"name": "f"}}]
    sets: tuple[dict[str, Any], ...] = (
        {"tools": tools},
        {"tool_choice": "required"},
        {"documents": [{}]},
    )
    for fields in sets:
        answer = served.complete(**fields)
        assert (answer.status, answer.error["param"]) == (400, *fields)


def test_what_changes_nothing_passes(served):
    harmless = {
        **dict.fromkeys(("logprobs", "suffix", "seed", "stop", "slo", "functions")),
        **{"logit_bias": {}, "tools": [], "presence_penalty": 0, "n": 1, "best_of": 1},
        **{"repetition_penalty": 1.0, "tool_choice": "none", "top_logprobs": 0},
        **{"response_format": {"type": "text"}, "skip_special_tokens": True},
        **{"user": "me", "stream_options": None},
    }
    assert served.complete(max_tokens=1, **harmless).status == 200
    assert served.chat(max_tokens=1, logprobs=False).status == 200
    assert served.chat(echo=True).error["param"] == "echo"
    assert served.complete(max_completion_tokens=5).status == 400


def test_unknown_fields_are_ignored_named_and_logged_once(served, caplog):
    for _ in range(3):
        assert served.complete(max_tokens=1, metadata={}, whim=[1]).status == 200
        options = {"include_usage": False, "chatty": True}
        answer = served.complete(max_tokens=1, stream=True, stream_options=options)
        assert answer.status == 200
        assert answer.headers["x-jserve-ignored"] == "stream_options.chatty"
    answer = served.complete(**{"max_tokens": 1, "\r\n" + "é" * 99: 1})
    assert answer.headers["x-jserve-ignored"] == r"\r\n" + r"\xe9" * 9
    answer = served.complete(max_tokens=1, **{f"a{i}": i for i in range(9)})
    assert answer.headers["x-jserve-ignored"].endswith(", a7, ...")
    logged = [one.getMessage() for one in caplog.records]
    for name in ("'metadata'", "'whim'", "'stream_options.chatty'"):
        assert sum(name in one for one in logged) == 1


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], ["messages=[]", ">= 1"]),
        ("hi", ["messages"]),
        ([{"content": "a"}], ["messages.0.role is missing"]),
        ([{"role": "robot", "content": "a"}], ["'robot'", "assistant"]),
        ([{"role": "user", "content": 7}], ["content=7", "a string or a list"]),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            ["'image_url'", "text"],
        ),
        (
            [{"role": "assistant", "content": "a", "tool_calls": [{}]}],
            ["tool_calls"],
        ),
        ([{"role": "user", "content": "a" * 600}], ["512"]),
    ],
)
def test_a_conversation_that_is_none(served, messages, words):
    answer = served.chat(messages=messages)
    assert answer.status == 400
    for word in words:
        assert word in answer.error["message"]


def test_models_routes_and_methods(served):
    answer = served.complete(model="other")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert "'other'" in answer.error["message"]
    assert "'fake'" in answer.error["message"]
    assert served.get("/v1/models/other").error["code"] == "model_not_found"
    answer = post(served, json.dumps({"prompt": "a", "model": 7}).encode())
    assert answer.status == 400
    assert served.get("/v1/nothing").error["type"] == "not_found_error"
    answer = served.get("/v1/completions")
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"
    assert "GET" in answer.error["message"]
    assert post(served, b"{}", "/health").status == 405
