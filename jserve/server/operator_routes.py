"""Endpoints for those who run the server: health, metrics, steps, what it is."""

import asyncio
import dataclasses
import functools
import importlib.metadata
import json
import pathlib
import platform
import sys
from typing import Any

import prometheus_client
from fastapi import APIRouter, Request, Response

import jserve
from jserve.events import Health, StepRecord
from jserve.server.errors import ApiError
from jserve.server.service import Service

MAX_STEPS_A_CALL = 20_000
_STEP_FIELDS = tuple(field.name for field in dataclasses.fields(StepRecord))
_SERVING = (Health.READY, Health.WARM)


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value).encode(), status, media_type="application/json")


def _count(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    # 15 digits are enough for any count, and few enough for int() to be quick.
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise ApiError(400, f"{name}={text[:80]!r} is not a count", param=name)
    if int(text) > most:
        raise ApiError(400, f"{name}={text} is over {most}", param=name)
    return int(text)


def _steps_page(service: Service, since: int, limit: int) -> bytes:
    steps = service.engine.steps(since)
    page = steps[:limit]
    return json.dumps(
        {
            "steps": [
                {name: getattr(step, name) for name in _STEP_FIELDS} for step in page
            ],
            "next": page[-1].step_id + 1 if page else since,
            "has_more": len(page) < len(steps),
            "now_s": service.engine.clock.now_s(),
        }
    ).encode()


def _plain(config: Any) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, pathlib.Path) else value
        for name, value in dataclasses.asdict(config).items()
    }


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"jserve": jserve.__version__, "python": platform.python_version()}
    for name in ("jax", "flax", "numpy"):
        versions[name] = importlib.metadata.version(name)
    return versions


def _device() -> dict[str, Any] | None:
    """Describes what the engine computes on; None where no engine has loaded JAX."""
    jax = sys.modules.get("jax")
    if jax is None:
        return None
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
    }


def health_router(service: Service) -> APIRouter:
    """Returns the endpoints that need no key."""
    router = APIRouter()
    registry = prometheus_client.CollectorRegistry()
    registry.register(service.metrics)

    @router.get("/health")
    async def health() -> Response:
        """Tells how far start-up has come; the status is 200 once it is ready.

        `alive`: the process answers. `ready`: requests are served, in the shapes
        compiled so far. `warm`: no shape is left to compile or to time.
        """
        state = service.engine.health
        is_ready = state in _SERVING
        answer = {
            "status": state.value,
            "alive": True,
            "ready": is_ready,
            "warm": state is Health.WARM,
        }
        return _json(answer, 200 if is_ready else 503)

    @router.get("/health/live")
    async def live() -> Response:
        return _json({"alive": True})

    @router.get("/version")
    async def version() -> Response:
        return _json({"version": jserve.__version__})

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(
            prometheus_client.generate_latest(registry),
            media_type=prometheus_client.CONTENT_TYPE_LATEST,
        )

    return router


def inspection_router(service: Service) -> APIRouter:
    """Returns the endpoints under /jserve: shapes, times and settings, no text."""
    router = APIRouter()

    @router.get("/steps")
    async def steps(request: Request) -> Response:
        since = _count(request, "since", 0, 10**15)
        limit = _count(request, "limit", MAX_STEPS_A_CALL, MAX_STEPS_A_CALL)
        page = await asyncio.to_thread(_steps_page, service, since, limit)
        return Response(page, media_type="application/json")

    @router.get("/info")
    async def info() -> Response:
        engine = service.engine
        stats = dataclasses.asdict(engine.stats())
        stats["health"] = stats["health"].value
        return _json(
            {
                "model": service.model_name,
                "max_model_len": engine.max_model_len,
                "vocab_size": engine.vocab_size,
                "num_kv_tokens": engine.num_kv_tokens,
                "engine": _plain(engine.config),
                "server": _plain(service.config),
                "service_classes": [
                    dataclasses.asdict(one) for one in service.classes.classes
                ],
                "stats": stats,
                "publish_s": service.router.publish_times_s(),
                "device": _device(),
                "versions": _versions(),
                "now_s": engine.clock.now_s(),
            }
        )

    return router
