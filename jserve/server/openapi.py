"""/openapi.json and /docs: what is accepted, by the classes that the parser reads."""

import functools
import pathlib
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.utils import get_openapi
from msgspec import Struct

import jserve
from jserve.server.slo_input import SLO_HEADERS

_PAGE = pathlib.Path(__file__).with_name("docs.html").read_bytes()
_REF = "#/components/schemas/{name}"
_BODIES: dict[str, type[Struct]] = {}
_SECONDS = {"schema": {"type": "number", "exclusiveMinimum": 0}}
_SLO = [{"in": "header", "name": name, **_SECONDS} for name in SLO_HEADERS]


def accepts(*models: type[Struct]) -> dict[str, Any]:
    """Returns what an operation says of its body, which is of one of these classes."""
    _BODIES.update((one.__name__, one) for one in models)
    refs = [{"$ref": _REF.format(name=one.__name__)} for one in models]
    content = {"application/json": {"schema": {"anyOf": refs}}}
    body = {"required": True, "content": content}
    has_slo = "slo" in models[0].__struct_fields__
    return {"requestBody": body, "parameters": _SLO if has_slo else []}


def _document(app: FastAPI) -> dict[str, Any]:
    version, servers = jserve.__version__, [{"url": app.root_path or "/"}]
    document = get_openapi(
        title="jserve", version=version, routes=app.routes, servers=servers
    )
    for one in (one for path in document["paths"].values() for one in path.values()):
        one["responses"].pop("422", None)  # a query that is wrong gets 400
    _, schemas = msgspec.json.schema_components(_BODIES.values(), ref_template=_REF)
    for name, model in _BODIES.items():
        for refused in getattr(model, "refused", ()):
            schemas[name]["properties"].pop(refused, None)
    document["components"] = {"schemas": schemas}
    return document


def docs_router(app: FastAPI) -> APIRouter:
    """Returns the endpoints of an application's document."""
    router = APIRouter(include_in_schema=False)
    document = functools.cache(lambda: msgspec.json.encode(_document(app)))

    @router.get("/openapi.json")
    async def openapi() -> Response:
        return Response(document(), media_type="application/json")

    @router.get("/docs")
    async def docs() -> Response:
        return Response(_PAGE, media_type="text/html")

    return router
