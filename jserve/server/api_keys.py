"""API keys: who may use the server, and how much of it.

The limits of a key are on its own requests. What it may not have now is refused with
429, and the limit and the key are named in the message, so that a client can tell them
from a server that is full.
"""

import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, NoReturn

import msgspec
from fastapi import Request
from fastapi.security import HTTPBearer
from msgspec import Meta, Struct

from jserve.program import read_setting
from jserve.server.errors import ApiError
from jserve.server.metrics import ServerMetrics
from jserve.server.replies import Reply
from jserve.server_config import ServerConfig

_RETRY_S = 1.0  # where it is not known when a request of the key ends
_Limit = Annotated[int, Meta(ge=1)] | None


class ApiKey(Struct, forbid_unknown_fields=True):
    """A key with its limits, as in the file; None sets no limit.

    Attributes:
      name: Name in messages and metrics; "" is not counted there.
      key: What clients send.
      max_parallel_requests: Most requests at once, those that wait included.
      max_waiting_requests: Most requests without a first token.
      tokens_per_minute: Rate of prompt and output tokens. A minute's worth may be used
        at once; requests are refused while more than that has been used.
    """

    name: Annotated[str, Meta(min_length=1, max_length=80)]
    key: Annotated[str, Meta(min_length=1)]
    max_parallel_requests: _Limit = None
    max_waiting_requests: _Limit = None
    tokens_per_minute: _Limit = None


class KeyUse:
    """What a key uses of the server."""

    def __init__(self, key: ApiKey, metrics: ServerMetrics):
        self.key = key
        self._metrics = metrics
        self._replies: set[Reply] = set()
        self._used_tokens = 0.0  # less what has become free again
        self._used_s = 0.0  # when that was so

    def check(self, num_requests: int, now_s: float) -> None:
        """Checks that the key may have more requests now.

        Raises:
          ApiError: 429, or 400 for what it may never have, naming the limit.
        """
        key = self.key
        for name in ("max_parallel_requests", "max_waiting_requests"):
            if (limit := getattr(key, name)) is not None:
                count = sum(
                    one.finish_reason is None
                    and not (one.tokens and name == "max_waiting_requests")
                    for reply in self._replies
                    for one in reply.generations
                )
                if count + num_requests > limit:
                    retry_after_s = _RETRY_S if num_requests <= limit else None
                    self._refuse(
                        name, f"{count} and {num_requests} more", retry_after_s
                    )
        if key.tokens_per_minute is not None:
            per_s = key.tokens_per_minute / 60
            freed = per_s * (now_s - self._used_s)
            self._used_tokens = max(self._used_tokens - freed, 0.0)
            self._used_s = now_s
            if (over := self._used_tokens - key.tokens_per_minute) >= 0:
                used = f"{self._used_tokens:.0f} are used"
                self._refuse("tokens_per_minute", used, over / per_s)

    def _refuse(
        self, limit: str, message: str, retry_after_s: float | None
    ) -> NoReturn:
        self._metrics.count_key(self.key.name, limit)
        most = getattr(self.key, limit)
        raise ApiError(
            f"api key {self.key.name!r} has {limit}={most}: {message}",
            status=429 if retry_after_s else 400,
            code="rate_limit_exceeded",
            retry_after_s=retry_after_s,
        )

    def begin(self, reply: Reply) -> None:
        """Counts a reply, with its prompts, until its end."""
        self._replies.add(reply)
        self._metrics.count_key(self.key.name, "accepted")
        self._count("prompt", reply.usage()["prompt_tokens"])

    def end(self, reply: Reply) -> None:
        """Counts the outputs of a reply that has ended."""
        self._replies.discard(reply)
        self._count("generation", reply.usage()["completion_tokens"])

    def _count(self, kind: str, num_tokens: int) -> None:
        self._used_tokens += num_tokens
        self._metrics.count_key_tokens(self.key.name, kind, num_tokens)


def _parse(text: str) -> list[ApiKey]:
    if text.lstrip().startswith("["):
        keys = msgspec.json.decode(text, type=list[ApiKey])
    elif text.lstrip().startswith("{"):
        raise ValueError("holds an object, not a JSON list of objects or a key a line")
    else:
        lines = enumerate(map(str.strip, text.splitlines()), start=1)
        keys = [ApiKey(name=f"line {index}", key=key) for index, key in lines if key]
    for name in ("name", "key"):
        if len({getattr(one, name) for one in keys}) < len(keys):
            raise ValueError(f"two keys have the same {name}")
    if not keys:
        raise ValueError("holds no key")
    return keys


def load_api_keys(config: ServerConfig) -> list[ApiKey]:
    """Reads the accepted API keys; without a file no key is required.

    Raises:
      ValueError: If the file is missing, invalid, or holds no key.
    """
    path = config.api_key_file
    return [] if path is None else read_setting("api_key_file", path, _parse)


def key_check(
    keys: Sequence[ApiKey], metrics: ServerMetrics
) -> Callable[[Request], Awaitable[None]]:
    """Returns a check, in constant time, that a request has an accepted key.

    It sets `request.state.key_use`; without keys all requests share one without limits.
    """
    bearer = HTTPBearer(auto_error=False)
    uses = [(one.key.encode(), KeyUse(one, metrics)) for one in keys]
    anybody = KeyUse(ApiKey(name="", key=""), metrics)

    async def check(request: Request) -> None:
        given = await bearer(request)
        text = given.credentials if given else request.headers.get("x-api-key", "")
        key = text.strip().encode("latin-1", "replace")
        found = [use for known, use in uses if hmac.compare_digest(key, known)]
        if uses and not found:
            message = "this server needs a key: Authorization: Bearer <key>"
            message = "the API key is not one of this server's" if key else message
            raise ApiError(message, status=401, code="invalid_api_key")
        request.state.key_use = found[0] if found else anybody

    return check
