"""Log lines with the id of the request that they are about, and the access log.

Every answer has an `x-request-id`: the client's, or else the id of the answer.
"""

import contextvars
import datetime
import json
import logging
import re
import time
import uuid

from absl import logging as absl_logging
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jserve.server.errors import quote
from jserve.server_config import ServerConfig

_LOGGER = logging.getLogger(__name__)
_HEADER = b"x-request-id"
_SAFE_ID = re.compile(rb"[!-~]{1,128}")  # what cannot forge a line of the log


# Ids of the request that a task serves: `given` by the client, and of its `answer`.
_IDS = contextvars.ContextVar[dict[str, str]]("ids")


def current_id() -> str:
    """Returns the id of the request that this task serves; "" before it has one."""
    ids = _IDS.get({})
    return ids.get("given") or ids.get("answer", "")


def name_answer(answer_id: str) -> None:
    """Names the answer to the request that this task serves."""
    _IDS.get({}).setdefault("answer", answer_id)


class RequestLog:
    """Gives each HTTP request its id, and logs its end if `is_access_logged`."""

    def __init__(self, app: ASGIApp, is_access_logged: bool):
        self._app = app
        self._is_access_logged = is_access_logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(_HEADER, b"")
        ids = {"given": given.decode()} if _SAFE_ID.fullmatch(given) else {}
        _IDS.set(ids)
        start_s, status = time.monotonic(), 499

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                name_answer(f"req-{uuid.uuid4().hex}")
                named = (_HEADER, current_id().encode())
                message["headers"] = [*message.get("headers", ()), named]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        finally:
            if self._is_access_logged:
                method, path = scope["method"], scope["path"]
                duration_s = round(time.monotonic() - start_s, 6)
                fields = {"method": method, "path": path, "status": status}
                fields |= {"duration_s": duration_s, "answer_id": ids.get("answer")}
                text = f"{method} {quote(path)} {status} {duration_s} s"
                _LOGGER.info("%s", text, extra={"fields": fields})


class _PlainFormatter(absl_logging.PythonFormatter):
    def format(self, record: logging.LogRecord) -> str:
        text: str = super().format(record)
        return f"{text} [{request_id}]" if (request_id := current_id()) else text


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if request_id := current_id():
            line["request_id"] = request_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logs(config: ServerConfig) -> None:
    """Sets level and form of this process's log lines."""
    logging.getLogger("jserve").setLevel(config.log_level.upper())
    kinds = {"plain": _PlainFormatter, "json": _JsonFormatter}
    absl_logging.get_absl_handler().setFormatter(kinds[config.log_format]())
