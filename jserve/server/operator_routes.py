"""Endpoints for operators of the server: health, metrics, steps and settings."""

import dataclasses
import math
import pathlib
import time
from typing import Annotated, Any, Literal

import prometheus_client
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.requests import ClientDisconnect

import jserve
from jserve.engine.facts import engine_facts
from jserve.flags import field_help
from jserve.records.chrome_trace import chrome_trace
from jserve.records.events import Health
from jserve.server.bodies import BodyLimits, received_body
from jserve.server.chat_request import ChatRequest
from jserve.server.errors import ApiError
from jserve.server.openapi import accepts
from jserve.server.predict import Lengths, predict
from jserve.server.protocol import CompletionRequest
from jserve.server.service import Service
from jserve_sched.steps.record import StepRecord

MAX_STEPS_A_CALL = 20_000
_PAGE = pathlib.Path(__file__).with_name("live.html")
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'"
)
_OF_REQUEST = ("request_id", "service_class", "num_prompt_tokens", "arrival_s")


def health_router(service: Service) -> APIRouter:
    """Returns the endpoints that need no key."""
    router = APIRouter()

    @router.get("/")
    async def live_page() -> Response:
        """Returns a page that shows what the other endpoints say, again and again."""
        headers = {"content-security-policy": _PAGE_POLICY}
        return HTMLResponse(_PAGE.read_bytes(), headers=headers)

    @router.get("/health")
    async def health() -> Response:
        """Returns how far start-up has come; the status is 200 once it is ready.

        `alive`: the process answers. `ready`: requests are served, in the buckets
        compiled so far. `warm`: all buckets are compiled and timed. `phase`: the stage
        of start-up, with what is `done` and `left` of it, and the `seconds` it has
        taken; "" once the server is warm.
        """
        state = service.engine.health
        is_ready = state in (Health.READY, Health.WARM)
        answer = {
            "status": state.value,
            "alive": True,
            "ready": is_ready,
            "warm": state is Health.WARM,
            **dataclasses.asdict(service.engine.stats().start_up.stage),
        }
        return JSONResponse(answer, 200 if is_ready else 503)

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        return {"alive": True}

    @router.get("/ping")
    @router.post("/ping")
    async def ping() -> Response:
        return await health()

    @router.get("/version")
    async def version() -> dict[str, str]:
        return {"version": jserve.__version__}

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(
            prometheus_client.generate_latest(service.metrics.registry),
            media_type=prometheus_client.CONTENT_TYPE_LATEST,
        )

    return router


def inspection_router(service: Service) -> APIRouter:
    """Returns the endpoints under /jserve: steps and settings, never text."""
    router = APIRouter()
    bodies = BodyLimits(service.max_body_bytes, service.config.body_timeout_s)

    accepted = accepts(CompletionRequest, ChatRequest, Lengths)

    @router.post("/predict", openapi_extra=accepted)
    async def predicted(request: Request) -> dict[str, Any]:
        """Returns a forecast; see `predict`."""
        arrival_s = time.monotonic()
        try:
            async with received_body(request, bodies) as body:
                return await predict(service, body, request.headers, arrival_s)
        except ClientDisconnect:
            raise ApiError("the client has left", status=499) from None

    @router.get("/requests")
    async def requests(
        limit: Annotated[int, Query(ge=0, le=1000)] = 100,
    ) -> dict[str, Any]:
        """Returns the requests without an end, by their next deadline, without text.

        Times are on the clock of `now_s`; `deadline_s`, of the next token, may be null;
        `ttft_s` and `chance` were forecast when it came.
        """
        found = service.router.open_requests()
        rows = [
            {name: getattr(one, name) for name in _OF_REQUEST}
            | {
                "state": one.state.value,
                "num_outputs": len(one.output_tokens),
                "deadline_s": one.deadline_s if math.isfinite(one.deadline_s) else None,
                "ttft_s": one.forecast and one.forecast.ttft_s,
                "chance": one.forecast and one.forecast.chance,
            }
            for one in found[:limit]
        ]
        now_s = time.monotonic()
        return {"num_requests": len(found), "requests": rows, "now_s": now_s}

    @router.get("/steps")
    def steps(  # runs in a thread, since a page takes a while to encode
        since: Annotated[int, Query(ge=0, le=10**15)] = 0,
        limit: Annotated[int, Query(ge=0, le=MAX_STEPS_A_CALL)] = MAX_STEPS_A_CALL,
        form: Annotated[Literal["json", "chrome"], Query(alias="format")] = "json",
    ) -> Response:
        """Returns the steps from `since`; /jserve/steps/fields documents them.

        `format=chrome` returns the last `limit` of them as a Chrome trace.
        """
        found = service.engine.steps(since)
        if form == "chrome":
            programs = service.engine.stats().start_up.programs
            page = found[max(len(found) - limit, 0) :]
            name = f"jserve {service.model_name}"
            return JSONResponse(chrome_trace(page, name=name, programs=programs))
        page = found[:limit]
        return JSONResponse(
            {
                "steps": [one._asdict() for one in page],
                "next": page[-1].step_id + 1 if page else since,
                "has_more": len(page) < len(found),
                "now_s": time.monotonic(),
                "predictor": dataclasses.asdict(service.engine.stats().predictor),
            }
        )

    @router.get("/steps/fields")
    async def step_fields() -> dict[str, str]:
        """Returns the meaning of each field of a step."""
        return field_help(StepRecord)

    @router.get("/info")
    async def info() -> dict[str, Any]:
        return engine_facts(service.engine) | {
            "model": service.model_name,
            "max_body_bytes": service.max_body_bytes,
            "server": service.config,
            "service_classes": service.classes.classes,
            "publish_s": service.router.publish_times_s(),
        }

    return router
