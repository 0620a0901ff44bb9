"""/openapi.json and /docs say what is accepted."""

import json
from typing import Any

import pytest

from tests.fake_server import serve_fake

HI = [{"role": "user", "content": "hi"}]
BODIES: dict[str, Any] = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": HI},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": HI},
    "/tokenize": {"prompt": "hi"},
    "/jserve/predict": {"prompt": "hi"},
}


@pytest.fixture(scope="module")
def document(served):
    return served.get("/openapi.json").json()


@pytest.mark.parametrize("path", BODIES)
def test_all_fields_of_the_document_are_known(served, document, path):
    operation = document["paths"][path]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    name = schema["anyOf"][0]["$ref"].removeprefix("#/components/schemas/")
    fields = document["components"]["schemas"][name]["properties"]
    assert fields.keys() > {"model", "temperature", "slo", "stop_token_ids"}
    optional = {one: None for one in fields if "default" in fields[one]}
    body = json.dumps({**optional, **BODIES[path]}).encode()
    answer = served.request("POST", path, body)
    assert answer.status == 200 and "x-jserve-ignored" not in answer.headers
    headers = [one["name"] for one in operation["parameters"]]
    assert {"x-slo-ttft-ms", "x-llm-d-slo-tpot-us", "x-sgl-ttft-slo-ms"} < {*headers}


def test_the_document_is_whole(document):
    schemas = document["components"]["schemas"]
    for name, field in (("ResponsesRequest", "n"), ("MessagesRequest", "stop")):
        assert field not in schemas[name]["properties"], "it is refused"
    assert "max_tokens" in schemas["MessagesRequest"]["required"]
    text = json.dumps(document)
    for one in text.split('"#/components/schemas/')[1:]:
        assert one.partition('"')[0] in schemas
    assert "422" not in text
    posts = {path for path, one in document["paths"].items() if "post" in one}
    assert posts == {*BODIES, "/detokenize", "/ping"}


def test_the_page_needs_no_network():
    with serve_fake(root_path="/llm") as served:
        page = served.get("/docs")
        [server] = served.get("/openapi.json").json()["servers"]
    assert page.headers["content-type"].startswith("text/html")
    assert b'fetch("openapi.json")' in page.body and b"//" not in page.body
    assert server == {"url": "/llm"} and len(page.body) < 4000


def test_what_can_be_got_can_be_asked_for_its_head(served, document):
    for path, operations in document["paths"].items():
        if "get" in operations and "{" not in path:
            head, whole = served.request("HEAD", path), served.get(path)
            assert head.status == whole.status == 200 and head.body == b""
            assert head.headers["content-type"] == whole.headers["content-type"]
    assert served.request("HEAD", "/v1/messages").status == 405
