"""Talks to any OpenAI-compatible server, as cheaply as a fair client can.

Client and server may share two cores, so a stream's bytes are searched, not parsed: an
event of `/v1/completions` is one token. The usage that ends the stream says how many
there were, and settles any difference.
"""

import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Any

import aiohttp

from jserve.events import StepRecord
from jserve_sched.clock import WallClock
from jserve_sched.report import Failure
from jserve_tools.bench_config import HttpConfig
from jserve_tools.clients import RequestFailedError
from jserve_tools.workload import WorkloadRequest

_STEP_FIELDS = {field.name for field in dataclasses.fields(StepRecord)}
# In JSON with and without blanks; within a text these quotes would be escaped.
_ABORT_MARKS = (b'"finish_reason": "abort"', b'"finish_reason":"abort"')
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=600)


def request_body(config: HttpConfig, request: WorkloadRequest, model: str) -> bytes:
    """Returns the JSON body of a request."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "ignore_eos": request.ignore_eos,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.temperature:
        body["seed"] = request.seed
    if config.api == "chat":
        words = (chr(ord("a") + int(token) % 26) for token in request.prompt)
        body["messages"] = [{"role": "user", "content": " ".join(words)}]
    else:
        body["prompt"] = request.prompt.tolist()
    if not request.slo.is_best_effort:
        slo = dataclasses.asdict(request.slo)
        body["slo"] = {name: one for name, one in slo.items() if one is not None}
    body |= config.extra
    kept = {name: value for name, value in body.items() if value is not None}
    return json.dumps(kept, separators=(",", ":")).encode()


class EventStream:
    """Splits a server-sent event stream and times its tokens.

    The newest token is held back until the next one or the end, since only the
    usage at the end tells whether a last event carried a token or just news.
    """

    def __init__(self, *, is_chat: bool):
        self.num_events = 0
        self.num_tokens: int | None = None  # by the server's usage
        self.is_done = False
        self._is_chat = is_chat
        self._rest = b""
        self._last_s = 0.0  # when the newest token, or without one anything, came

    def feed(self, data: bytes, time_s: float) -> Iterator[float]:
        """Yields the times of tokens that `data`, received at `time_s`, completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not self.num_events:
            self._last_s = time_s
        for line in lines:
            if line.startswith(b"data:") and self._is_token(line[5:].strip()):
                if self.num_events:
                    yield self._last_s
                self._last_s = time_s
                self.num_events += 1

    def finish(self) -> Iterator[float]:
        """Yields what was held back, as many tokens as the usage says.

        An answer of a chat that is nothing but its own end has no event, yet a token.

        Raises:
          RequestFailedError: If the stream broke off.
        """
        if not self.is_done:
            raise RequestFailedError(
                Failure.ERROR, f"the stream broke off after {self.num_events} events"
            )
        total = self.num_events if self.num_tokens is None else self.num_tokens
        for _ in range(max(self.num_events - 1, 0), total):
            yield self._last_s

    def _is_token(self, payload: bytes) -> bool:
        if payload == b"[DONE]":
            self.is_done = True
            return False
        if b'"usage":{' in payload or b'"usage": {' in payload:
            usage = json.loads(payload)
            self.num_tokens = int(usage["usage"]["completion_tokens"])
            return bool(usage.get("choices")) and not self._is_chat
        if payload.startswith((b'{"error"', b'{ "error"')):
            raise RequestFailedError(Failure.ERROR, error_message(payload))
        if any(mark in payload for mark in _ABORT_MARKS):
            raise RequestFailedError(Failure.ERROR, "the server aborted the request")
        if self._is_chat:
            choices = json.loads(payload).get("choices")
            return bool(choices and choices[0].get("delta", {}).get("content"))
        return True


def error_message(body: bytes) -> str:
    """Returns the message of an OpenAI-style error body, or the body's start."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


def refusal(status: int, body: bytes) -> RequestFailedError:
    """Returns the failure that a response other than 200 stands for."""
    is_too_long = status == 400 and b"context_length_exceeded" in body
    failure = Failure.TOO_LONG if is_too_long else Failure.ERROR
    if status == 429:
        failure = Failure.REJECTED
    return RequestFailedError(failure, f"HTTP {status}: {error_message(body)}")


class HttpClient:
    """A server behind a URL; made by `open_http_client`."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        config: HttpConfig,
        model: str,
        *,
        is_jserve: bool,
    ):
        self._session = session
        self._url = url
        self._config = config
        self._model = model
        self._is_jserve = is_jserve
        self._num_uneven_streams = 0
        self._clock = WallClock()

    def now_s(self) -> float:
        """Returns the client's clock, in seconds."""
        return self._clock.now_s()

    async def send(self, request: WorkloadRequest) -> AsyncGenerator[float, None]:
        """Yields when each token came; closing the iterator disconnects."""
        is_chat = self._config.api == "chat"
        stream = EventStream(is_chat=is_chat)
        try:
            async with self._session.post(
                f"{self._url}/v1/{'chat/' if is_chat else ''}completions",
                data=request_body(self._config, request, self._model),
                headers={"Content-Type": "application/json"},
            ) as response:
                if response.status != 200:
                    raise refusal(response.status, await response.read())
                async for data in response.content.iter_any():
                    for time_s in stream.feed(data, self.now_s()):
                        yield time_s
                for time_s in stream.finish():
                    yield time_s
        except (aiohttp.ClientError, OSError) as error:
            raise RequestFailedError(Failure.ERROR, repr(error)) from error
        self._num_uneven_streams += stream.num_tokens not in (None, stream.num_events)

    async def facts(self) -> Mapping[str, Any]:
        """Returns the server's own description, or just the model it serves.

        And how many streams had events that were not one a token.
        """
        served = {
            "url": self._url,
            "served_model_name": self._model,
            "num_uneven_streams": self._num_uneven_streams,
        }
        if not self._is_jserve:
            return served
        info = await _get_json(self._session, f"{self._url}/jserve/info")
        return served | dict(info or {})

    async def steps(self, since: int) -> list[StepRecord] | None:
        """Returns the steps numbered from `since`; None from a foreign server."""
        if not self._is_jserve:
            return None
        steps: list[StepRecord] = []
        while True:
            page = await _get_json(
                self._session, f"{self._url}/jserve/steps?since={since}"
            )
            rows = (page or {}).get("steps", [])
            if not rows:
                return steps
            steps += [
                StepRecord(**{k: v for k, v in row.items() if k in _STEP_FIELDS})
                for row in rows
            ]
            since = steps[-1].step_id + 1


async def _get_json(
    session: aiohttp.ClientSession, url: str
) -> Mapping[str, Any] | None:
    async with session.get(url) as response:
        if response.status != 200:
            return None
        try:
            found = await response.json(content_type=None)
        except ValueError:
            return None
    return found if isinstance(found, dict) else None


@contextlib.asynccontextmanager
async def open_http_client(url: str, config: HttpConfig) -> AsyncIterator[HttpClient]:
    """Connects to a server that is ready.

    Raises:
      ConnectionError: If it does not answer, or serves no model.
      ValueError, OSError: If there is no key in the file of the API key.
    """
    url = url.rstrip("/").removesuffix("/v1")
    key = config.api_key()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=_TIMEOUT, headers=headers
    ) as session:
        try:
            models = await _get_json(session, f"{url}/v1/models")
            info = await _get_json(session, f"{url}/jserve/info")
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionError(f"{url} does not answer: {error}") from None
        served = (models or {}).get("data") or []
        model = config.extra.get("model") or (served[0].get("id") if served else None)
        if not model:
            raise ConnectionError(f"{url}/v1/models names no model")
        yield HttpClient(session, url, config, str(model), is_jserve=info is not None)
