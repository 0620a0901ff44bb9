"""Every failure that a client may see, in OpenAI's format."""

import json
import math
from collections.abc import Mapping
from typing import Any

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
_MESSAGES_TYPES = _TYPES | {413: "request_too_large", 503: "overloaded_error"}
SURPRISE = "the server failed on this request"  # the message for an internal error
_MAX_QUOTED_CHARS = 80


def quote(value: object) -> str:
    """Returns a client's value for a message, shortened if it is long."""
    # The repr of a long text would take long, too.
    text = repr(value[:_MAX_QUOTED_CHARS] if isinstance(value, str) else value)
    is_long = len(text) > _MAX_QUOTED_CHARS
    return text[:_MAX_QUOTED_CHARS] + "..." if is_long else text


def printable(name: str) -> str:
    """Returns a name with escapes for what is not UTF-8, as paths may have it."""
    return name.encode("utf-8", "backslashreplace").decode()


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
            if retry_after_s == math.inf:  # OpenAI's clients read the header
                self.headers["x-should-retry"] = "false"
                retry_after_s = 300.0
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
        self.retry_after_s = retry_after_s
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def rename(self, names: Mapping[str, str]) -> None:
        """Calls the field as the client does, by the first name that its path has."""
        path = f"{self.param}."
        for old, new in names.items():
            if path.startswith(f"{old}.") and self.code != "unsupported_parameter":
                self.param = path.replace(old, new, 1)[:-1]
                self.args = (str(self).replace(old, new, 1),)
                return

    def body_at(self, path: str) -> bytes:
        """Returns the body of the response in the form of an endpoint."""
        if not path.endswith(("messages", "count_tokens")):
            return self.body
        fallback = "api_error" if self.status >= 500 else "invalid_request_error"
        kind = _MESSAGES_TYPES.get(self.status, fallback)
        error = {"type": kind, "message": str(self)}
        return json.dumps({"type": "error", "error": error}).encode()

    @property
    def body(self) -> bytes:
        """The body of the response; seconds to wait are exact in it."""
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        error: dict[str, Any] = {
            "message": str(self),
            "type": _TYPES.get(self.status, fallback),
            "param": self.param,
            "code": self.code,
        }
        if self.retry_after_s is not None:
            error["retry_after_s"] = self.retry_after_s
        return json.dumps({"error": error}).encode()
