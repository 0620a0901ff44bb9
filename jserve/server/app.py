"""Puts the endpoints together into one application."""

import asyncio
import contextlib
import functools
import http
import json
import logging
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from jserve.engine.interface import ServingEngine
from jserve.server.api_keys import key_check, load_api_keys
from jserve.server.errors import SURPRISE, ApiError, quote
from jserve.server.logs import RequestLog
from jserve.server.openai_routes import GENERATION_PATHS, openai_router
from jserve.server.openapi import docs_router
from jserve.server.operator_routes import health_router, inspection_router
from jserve.server.service import Service
from jserve.server.slo_input import load_service_classes
from jserve.server.tokenizer_routes import tokenizer_router
from jserve.server_config import ServerConfig
from jserve.text.tokenizer import Tokenizer

_ABSORB_S = 10.0  # much less than the engine's record of steps covers
_STOP_TIMEOUT_S = 5.0


def _response(error: ApiError, scope: Scope) -> Response:
    body = error.body_at(scope["path"])
    return Response(body, error.status, error.headers, media_type="application/json")


async def _on_error(request: Request, error: Exception) -> Response:
    target = f"{request.method} {quote(request.url.path)}"
    if isinstance(error, ApiError):
        answer = error
    elif isinstance(error, RequestValidationError):  # in a query
        row = error.errors()[0]
        path, reason = row["loc"][-1], row["msg"][:1].lower() + row["msg"][1:]
        answer = ApiError(f"{path}={quote(row['input'])}: {reason}", param=path)
    elif isinstance(error, HTTPException):
        phrase = http.HTTPStatus(error.status_code).phrase
        answer = ApiError(f"{phrase}: {target}", status=error.status_code)
        answer.headers.update(error.headers or {})
    else:
        logging.getLogger(__name__).error("%s failed", target, exc_info=error)
        answer = ApiError(SURPRISE, status=500)
    return _response(answer, request.scope)


class _AsciiJson(JSONResponse):
    """JSON in which names that are no UTF-8 are escaped."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


class _Gate:
    """Refuses requests that could not even be queued, before anything else is done.

    In overload they are most of all requests, and this takes a fraction of the time
    that the way to their endpoint does.
    """

    def __init__(self, app: ASGIApp, service: Service):
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        app = self._app
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # uvicorn leaves the body out
        if scope["type"] == "http" and scope["path"] in GENERATION_PATHS:
            try:
                self._service.check_open()
            except ApiError as error:
                app = _response(error, scope)
        await app(scope, receive, send)


async def _absorb_steps(service: Service) -> None:
    """Regularly adds new steps to the metrics."""
    while True:
        await asyncio.sleep(_ABSORB_S)
        try:
            service.metrics.absorb_steps()
        except Exception:  # the next ones may be countable
            logging.getLogger(__name__).exception("steps are missing in the metrics")


async def _stop(engine: ServingEngine) -> bool:
    """Stops the engine; returns False if it does not stop soon, as in a compiler."""
    thread = threading.Thread(target=engine.stop, name="jserve-stop", daemon=True)
    thread.start()
    deadline_s = time.monotonic() + _STOP_TIMEOUT_S
    while thread.is_alive() and time.monotonic() < deadline_s:
        await asyncio.sleep(0.01)
    return not thread.is_alive()


def build_app(
    engine: ServingEngine, tokenizer: Tokenizer, config: ServerConfig
) -> FastAPI:
    """Returns the application, whose lifespan starts and stops the engine.

    At the end `app.state.has_stopped` says whether the engine's thread has ended.

    Raises:
      ValueError: If service classes or keys cannot be read, or the model has more
        end-of-sequence tokens than a request may stop at.
    """
    service = Service(engine, tokenizer, config, load_service_classes(config))
    key = Depends(key_check(load_api_keys(config), service.metrics))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        engine.set_listener(functools.partial(service.router.publish, loop))
        engine.start()
        absorber = asyncio.create_task(_absorb_steps(service))
        try:
            async with service.readers.running():
                yield
        finally:
            absorber.cancel()
            app.state.has_stopped = await _stop(engine)
            if service.tracer is not None:
                await asyncio.to_thread(service.tracer.close)

    app = FastAPI(
        title="jserve",
        openapi_url=None,
        default_response_class=_AsciiJson,
        lifespan=lifespan,
    )
    app.root_path = config.root_path
    app.state.has_stopped = True  # until the lifespan starts it
    for kind in (ApiError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _on_error)
    app.add_middleware(_Gate, service=service)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[
                *("x-request-id", "x-jserve-ignored", "x-jserve-slo"),
                *("x-jserve-forecast", "x-jserve-admission", "x-should-retry"),
                "retry-after",
            ],
        )
    app.add_middleware(RequestLog, is_access_logged=config.access_log)
    app.include_router(docs_router(app))
    app.include_router(health_router(service))
    app.include_router(openai_router(service), prefix="/v1", dependencies=[key])
    app.include_router(inspection_router(service), prefix="/jserve", dependencies=[key])
    app.include_router(tokenizer_router(service), dependencies=[key])
    return app
