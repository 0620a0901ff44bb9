"""The endpoints under /v1: OpenAI's, Anthropic's messages, and the list of models."""

import asyncio
import functools
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from jserve.server.api_keys import KeyUse
from jserve.server.bodies import BodyLimits, received_body
from jserve.server.chat_request import ChatRequest
from jserve.server.errors import SURPRISE, ApiError
from jserve.server.http_limits import DIRECT_WRITE
from jserve.server.logs import name_answer
from jserve.server.openapi import accepts
from jserve.server.protocol import (
    CompletionRequest,
    GenerationRequest,
    log_ignored,
    names_header,
)
from jserve.server.replies import Reply
from jserve.server.service import Service
from jserve.server.slo_input import slo_header
from jserve.server.translated import CountRequest, MessagesRequest, ResponsesRequest

_GENERATING: dict[str, type[GenerationRequest]] = {
    "/completions": CompletionRequest,
    "/chat/completions": ChatRequest,
    "/responses": ResponsesRequest,
    "/messages": MessagesRequest,
    "/messages/count_tokens": CountRequest,
}
GENERATION_PATHS = frozenset(f"/v1{path}" for path in _GENERATING)
_CLIENT_CLOSED_REQUEST = 499  # for logs and tests, since the client has left


class ReplyResponse(StreamingResponse):
    """Sends a reply, streamed or whole, and cancels it if its client leaves."""

    def __init__(
        self,
        reply: Reply,
        service: Service,
        key_use: KeyUse,
        ignored: Sequence[str],
    ):
        name_answer(reply.form.response_id)
        headers = {"x-jserve-slo": slo_header(reply.generations[0].request)}
        if ignored:
            headers["x-jserve-ignored"] = names_header(ignored)
        if forecast := reply.forecast:
            headers["x-jserve-forecast"] = forecast.header
        media_type = "application/json"
        if reply.is_streamed:
            headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
            media_type = "text/event-stream"
        super().__init__((), headers=headers, media_type=media_type)
        self._reply = reply
        self._router = service.router
        self._tracer = service.tracer
        self._keep_alive_s = service.config.sse_keep_alive_s
        self._key_use = key_use
        key_use.begin(reply)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if self._reply.is_streamed:
            self._reply.write = scope["extensions"][DIRECT_WRITE]["write"]
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._router.close(self._reply)
            self._key_use.end(self._reply)
            if self._tracer is not None:
                self._tracer.record(self._reply, Headers(scope=scope))

    async def stream_response(self, send: Send) -> None:
        """Sends the answer; what fails before its first byte has the status of that.

        Whatever ends it early, such as a server that stops, is an error in the API's
        form, after the first byte as before it. The head of a stream is sent once no
        output can be refused any more, or with the first byte.
        """
        reply, has_more = self._reply, True
        try:
            if reply.is_streamed and reply.is_committed and not reply.is_failed:
                await self._begin(send)
            while has_more:
                chunk, has_more = await reply.next(self._keep_alive_s)
                await self._send(send, chunk, reply.error, has_more=has_more)
        except BaseException as error:
            is_cancelled = isinstance(error, asyncio.CancelledError)
            failure = ApiError(SURPRISE, status=500)
            if is_cancelled:
                failure = ApiError("the server stops", status=503)
            await self._send(send, reply.failure(failure), failure, has_more=False)
            raise

    async def _send(
        self, send: Send, chunk: bytes, error: ApiError | None, *, has_more: bool
    ) -> None:
        reply = self._reply
        if not reply.has_begun:
            if error is not None:
                self.status_code = error.status
                self.headers.update(
                    {"content-type": "application/json", **error.headers}
                )
            if error is not None or not reply.is_streamed:
                self.headers["content-length"] = str(len(chunk))
            await self._begin(send)
        await send({"type": "http.response.body", "body": chunk, "more_body": has_more})

    async def _begin(self, send: Send) -> None:
        self._reply.has_begun = True
        if self._reply.is_degraded:
            self.headers["x-jserve-admission"] = "degraded"
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})


def openai_router(service: Service) -> APIRouter:
    """Returns the endpoints under /v1."""
    router = APIRouter()
    started_s = int(time.time())
    bodies = BodyLimits(service.max_body_bytes, service.config.body_timeout_s)

    def model_card(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": started_s,
            "owned_by": "jserve",
            "max_model_len": service.engine.limits.context_tokens,
        }

    async def answer(model: type[GenerationRequest], request: Request) -> Response:
        arrival_s = time.monotonic()
        key_use: KeyUse = request.state.key_use
        key_use.check(1, arrival_s)
        encoding = request.headers.get("content-encoding", "").lower()
        encoding = "" if encoding == "identity" else encoding
        try:
            async with received_body(request, bodies) as body:
                asked = await service.readers.read(model, body, encoding)
            log_ignored(asked.ignored)
            if model is CountRequest:
                return JSONResponse({"input_tokens": len(asked.prompts[0].tokens)})
            num_requests = (asked.body.n or 1) * len(asked.prompts)
            key_use.check(num_requests, time.monotonic())
            reply = await service.start(asked, request.headers, arrival_s)
        except ClientDisconnect:
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        except ApiError as error:
            error.rename(model.renamed)
            raise
        return ReplyResponse(reply, service, key_use, asked.ignored)

    for path, model in _GENERATING.items():
        router.post(
            path,
            name=model.__name__,
            description=model.__doc__,
            openapi_extra=accepts(model),
        )(functools.partial(answer, model))

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [*map(model_card, service.model_names)]}

    @router.get("/models/{name:path}")
    async def named_model(name: str) -> dict[str, Any]:
        service.readers.reader.check_model(name)
        return model_card(name)

    return router
