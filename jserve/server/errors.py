"""Every failure a client may see, in the form OpenAI's clients expect."""

import http
import json
import logging
import math
from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
SURPRISE = "the server failed on this request"  # all that a client hears of a bug
_MAX_QUOTED_CHARS = 80


def quote(value: object) -> str:
    """Returns a client's value as a message may repeat it: short."""
    text = repr(value)
    if len(text) > _MAX_QUOTED_CHARS:
        return text[:_MAX_QUOTED_CHARS] + "..."
    return text


class ApiError(Exception):
    """A refusal: what to tell the client, and with which status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


def error_json(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> bytes:
    """Returns the body of an error response."""
    fallback = "server_error" if status >= 500 else "invalid_request_error"
    return json.dumps(
        {
            "error": {
                "message": message,
                "type": _TYPES.get(status, fallback),
                "param": param,
                "code": code,
            }
        }
    ).encode()


def error_response(error: ApiError) -> Response:
    """Returns the response that tells a client of `error`."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _response(
        error.status,
        error_json(error.status, error.message, param=error.param, code=error.code),
        headers,
    )


def _response(
    status: int, body: bytes, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(body, status, headers, media_type="application/json")


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    phrase = http.HTTPStatus(status).phrase
    message = f"{phrase}: {request.method} {request.url.path}"
    return _response(status, error_json(status, message), error.headers)


async def _on_surprise(request: Request, error: Exception) -> Response:
    logging.getLogger(__name__).error(
        "%s %s failed", request.method, request.url.path, exc_info=error
    )
    return _response(500, error_json(500, SURPRISE))


def install_error_handlers(app: FastAPI) -> None:
    """Makes every failure of `app` answer in OpenAI's form."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_surprise)
