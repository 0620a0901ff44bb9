"""/openapi.json and /docs: made of the structs that read bodies."""

import pathlib
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse

import jserve
from jserve.server.chat_request import ChatRequest
from jserve.server.messages_input import MessagesRequest
from jserve.server.protocol import CompletionRequest
from jserve.server.responses_input import ResponsesRequest

_BODIES: dict[str, type[msgspec.Struct]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": MessagesRequest,
}
_PAGE = pathlib.Path(__file__).with_name("docs.html").read_text()
_REFERENCE = "#/components/schemas/{name}"


def describe(app: FastAPI) -> dict[str, Any]:
    """Returns the description of all endpoints, in OpenAPI's form."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    found = get_openapi(title="jserve", version=jserve.__version__, routes=app.routes)
    structs = dict.fromkeys(_BODIES.values())
    schemas, components = msgspec.json.schema_components(
        structs, ref_template=_REFERENCE
    )
    by_struct = dict(zip(structs, schemas, strict=True))
    for path, struct in _BODIES.items():
        content = {"application/json": {"schema": by_struct[struct]}}
        found["paths"][path]["post"]["requestBody"] = {
            "required": True,
            "content": content,
        }
    known = found.setdefault("components", {}).setdefault("schemas", {})
    known |= components
    app.openapi_schema = found
    return found


async def docs() -> HTMLResponse:
    """Returns a page that lists what /openapi.json says."""
    return HTMLResponse(_PAGE)
