"""Every failure that a client may see, in OpenAI's format."""

import http
import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
SURPRISE = "the server failed on this request"  # the message for an internal error
_MAX_QUOTED_CHARS = 80


def quote(value: object) -> str:
    """Returns a client's value for a message, shortened if it is long."""
    text = repr(value)
    is_long = len(text) > _MAX_QUOTED_CHARS
    return text[:_MAX_QUOTED_CHARS] + "..." if is_long else text


class ApiError(Exception):
    """A refusal, with the message for the client, the field `param` and the status."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        code: str | None = None,
        retry_after_s: float | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers: dict[str, str] = {}
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"


def validation_error(row: Mapping[str, Any], path: str) -> ApiError:
    """Returns the refusal of a value at `path` that pydantic found invalid."""
    reason = row["msg"][:1].lower() + row["msg"][1:]
    return ApiError(f"{path}={quote(row['input'])}: {reason}", param=path)


def error_json(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> bytes:
    """Returns the body of an error response."""
    fallback = "server_error" if status >= 500 else "invalid_request_error"
    error = {
        "message": message,
        "type": _TYPES.get(status, fallback),
        "param": param,
        "code": code,
    }
    return json.dumps({"error": error}).encode()


def _response(error: ApiError) -> Response:
    body = error_json(error.status, str(error), param=error.param, code=error.code)
    return Response(body, error.status, error.headers, media_type="application/json")


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ApiError):
        return _response(error)
    if isinstance(error, RequestValidationError):  # in a query
        row = error.errors()[0]
        return _response(validation_error(row, row["loc"][-1]))
    if isinstance(error, HTTPException):
        phrase = http.HTTPStatus(error.status_code).phrase
        message = f"{phrase}: {request.method} {request.url.path}"
        answer = ApiError(message, status=error.status_code)
        answer.headers.update(error.headers or {})
        return _response(answer)
    logging.getLogger(__name__).error(
        "%s %s failed", request.method, request.url.path, exc_info=error
    )
    return _response(ApiError(SURPRISE, status=500))


def install_error_handlers(app: FastAPI) -> None:
    """Makes `app` answer every failure in OpenAI's format."""
    for kind in (ApiError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _on_error)
