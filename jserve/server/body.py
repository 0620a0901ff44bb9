"""Reads a request's body within its limit and as what it should be.

The one idea: nothing beyond the limit is ever kept. A somewhat larger body is
still read and dropped, since a client that is cut off while it writes sees a
broken connection instead of the 413 that explains it.
"""

from typing import TypeVar

import pydantic
from fastapi import Request

from jserve.server.errors import ApiError, quote

_DROPPED_BODIES = 8  # bodies of the largest size that are read in order to drop them

Model = TypeVar("Model", bound=pydantic.BaseModel)


async def read_body(request: Request, max_body_bytes: int) -> bytes:
    """Returns the body.

    Raises:
      ApiError: 413 if it is larger than `max_body_bytes`.
    """
    declared = request.headers.get("content-length", "")
    num_bytes = int(declared) if declared.isdecimal() else 0
    if num_bytes > max_body_bytes * _DROPPED_BODIES:
        raise _too_large(num_bytes, max_body_bytes)
    parts: list[bytes] = []
    num_bytes = 0
    async for part in request.stream():
        num_bytes += len(part)
        if num_bytes <= max_body_bytes:
            parts.append(part)
            continue
        parts.clear()
        if num_bytes > max_body_bytes * _DROPPED_BODIES:
            break
    if num_bytes > max_body_bytes:
        raise _too_large(num_bytes, max_body_bytes)
    return b"".join(parts)


def _too_large(num_bytes: int, max_body_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the body has {num_bytes} bytes or more; the limit is {max_body_bytes} bytes",
        code="body_too_large",
    )


def parse_body(model: type[Model], body: bytes) -> Model:
    """Returns the request that a body's JSON describes.

    Raises:
      ApiError: 400 if the body is not UTF-8, not JSON, or not such a request.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(
            400,
            f"the body is not UTF-8: byte {error.object[error.start]:#04x} at offset "
            f"{error.start}",
        ) from None
    try:
        return model.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise _explain(error) from None


def _explain(error: pydantic.ValidationError) -> ApiError:
    """Names the first fault; a client mends them one by one anyway."""
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['msg']}")
    path = ".".join(str(part) for part in first["loc"])
    if not path:
        return ApiError(400, "the body must be a JSON object")
    if first["type"] == "missing":
        return ApiError(400, f"{path} is missing", param=path)
    reason = first["msg"][:1].lower() + first["msg"][1:]
    return ApiError(400, f"{path}={quote(first['input'])}: {reason}", param=path)
