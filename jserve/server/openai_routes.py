"""OpenAI's endpoints: completions, chats, and the list of models."""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from jserve.server.errors import error_json
from jserve.server.generation import Reply
from jserve.server.http_limits import read_body
from jserve.server.protocol import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    parse_body,
)
from jserve.server.router import TokenRouter
from jserve.server.service import Arrival, Service

_CLIENT_CLOSED_REQUEST = 499  # nobody will read it; logs and tests do


class ReplyResponse(Response):
    """Sends a reply, as it grows or whole, and cancels it if its client leaves."""

    def __init__(self, reply: Reply, router: TokenRouter):
        super().__init__()
        self._reply = reply
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        watcher = asyncio.create_task(self._watch(receive))
        try:
            if self._reply.is_streamed:
                await self._send_stream(send)
            else:
                await self._send_whole(send)
        finally:
            watcher.cancel()
            self._router.close(self._reply)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._reply.leave()

    async def _send_stream(self, send: Send) -> None:
        await self._send_start(
            send,
            200,
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        )
        is_finished = False
        while not is_finished:
            chunk = await self._reply.read()
            if self._reply.has_left:
                return
            is_finished = self._reply.is_finished
            more = {"body": chunk, "more_body": not is_finished}
            await send({"type": "http.response.body", **more})

    async def _send_whole(self, send: Send) -> None:
        await self._reply.read()
        if self._reply.has_left:
            return
        error = self._reply.error
        body = self._reply.answer() if error is None else error_json(500, error)
        await self._send_start(
            send,
            200 if error is None else 500,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        )
        await send({"type": "http.response.body", "body": body})

    async def _send_start(
        self, send: Send, status: int, *headers: tuple[bytes, bytes]
    ) -> None:
        request_id = (b"x-request-id", self._reply.form.response_id.encode())
        start = {"status": status, "headers": [*headers, request_id]}
        await send({"type": "http.response.start", **start})


def openai_router(service: Service) -> APIRouter:
    """Returns the endpoints under /v1."""
    router = APIRouter()
    started_s = int(time.time())

    def model_card() -> dict[str, Any]:
        return {
            "id": service.model_name,
            "object": "model",
            "created": started_s,
            "owned_by": "jserve",
            "max_model_len": service.context_tokens,
        }

    async def answer(model: type[GenerationRequest], request: Request) -> Response:
        arrival = Arrival(time_s=service.engine.clock.now_s(), headers=request.headers)
        service.check_open()
        try:
            body = await read_body(request, service.max_body_bytes)
        except ClientDisconnect:
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        reply = await service.start(parse_body(model, body), arrival)
        return ReplyResponse(reply, service.router)

    @router.post("/completions")
    async def completions(request: Request) -> Response:
        return await answer(CompletionRequest, request)

    @router.post("/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await answer(ChatRequest, request)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_card()]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return model_card()

    return router
