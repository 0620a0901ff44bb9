"""Sends the benchmark's requests over HTTP.

A client turns a request into the times at which its tokens came, on the client's own
clock. Every latency is computed from these, so it means the same for every server.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Any

import aiohttp

from jserve_sched.outcomes import Failure
from jserve_sched.steps.record import StepRecord
from jserve_tools.load.workload import WorkloadRequest
from jserve_tools.reporting.documents import known

# In JSON with and without blanks; within a text these quotes would be escaped.
_ABORT_MARKS = (b'"finish_reason": "abort"', b'"finish_reason":"abort"')
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=600)


class RequestFailedError(Exception):
    """A request that did not run to its end, and the kind of failure."""

    def __init__(self, failure: Failure, message: str):
        super().__init__(message)
        self.failure = failure


def request_body(
    request: WorkloadRequest, model: str, extra: Mapping[str, Any]
) -> bytes:
    """Returns a request's JSON body with the fields of `extra`; None removes one."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens,
        "prompt": request.prompt.tolist(),
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if not request.slo.is_best_effort:
        body["slo"] = known(dataclasses.asdict(request.slo))
    return json.dumps(known({**body, **extra}), separators=(",", ":")).encode()


class EventStream:
    """Splits a server-sent event stream and times its tokens.

    Client and server may share two cores, so bytes are searched, not parsed: an event
    of `/v1/completions` is one token. The newest token is held back until the next one
    or the end, since only the usage at the end says whether the last event carried a
    token.
    """

    def __init__(self) -> None:
        self.num_events = 0
        self.num_tokens: int | None = None  # from the server's usage
        self.is_done = False
        self._rest = b""
        self._last_s = 0.0  # arrival of the newest token, or of the first data

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
        """Yields the times of the tokens held back, up to the number in the usage.

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
            return bool(usage.get("choices"))
        if payload.startswith((b'{"error"', b'{ "error"')):
            raise RequestFailedError(Failure.ERROR, _error_message(payload))
        if any(mark in payload for mark in _ABORT_MARKS):
            raise RequestFailedError(Failure.ERROR, "the server aborted the request")
        return True


def _error_message(body: bytes) -> str:
    """Returns the message of an OpenAI-style error body, or the body's start."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


def refusal(status: int, body: bytes) -> RequestFailedError:
    """Returns the failure that a response with a status other than 200 means."""
    is_too_long = status == 400 and b"context_length_exceeded" in body
    failure = Failure.TOO_LONG if is_too_long else Failure.ERROR
    if status == 429 or b'"queue_wait"' in body:
        failure = Failure.REJECTED
    return RequestFailedError(failure, f"HTTP {status}: {_error_message(body)}")


@dataclasses.dataclass(kw_only=True)
class Client:
    """A server behind a URL; made by `open_client`.

    Attributes:
      url: Address without a path.
      extra: Fields merged into every request's body.
      model: Model name in every request.
      is_jserve: Whether it is a jserve server, which states its settings and steps.
      answered: Headers of the answers to requests, by id.
    """

    session: aiohttp.ClientSession
    url: str
    extra: Mapping[str, Any]
    model: str = ""
    is_jserve: bool = False
    answered: dict[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    def now_s(self) -> float:
        """Returns the client's clock, in seconds."""
        return time.monotonic()

    async def send(self, request: WorkloadRequest) -> AsyncGenerator[float, None]:
        """Yields when each token came; closing the iterator disconnects.

        Raises:
          RequestFailedError: While iterating, if the request is refused or fails.
        """
        stream = EventStream()
        try:
            async with self.session.post(
                f"{self.url}/v1/completions",
                data=request_body(request, self.model, self.extra),
                headers={"Content-Type": "application/json"},
            ) as response:
                if response.status != 200:
                    raise refusal(response.status, await response.read())
                self.answered[request.request_id] = response.headers
                async for data in response.content.iter_any():
                    for time_s in stream.feed(data, self.now_s()):
                        yield time_s
                for time_s in stream.finish():
                    yield time_s
        except (aiohttp.ClientError, OSError) as error:
            raise RequestFailedError(Failure.ERROR, repr(error)) from error

    async def facts(self) -> Mapping[str, Any]:
        """Returns /jserve/info; of a foreign server, only its URL and model."""
        served = {"url": self.url, "served_model_name": self.model}
        return served | (await self.get("/jserve/info") if self.is_jserve else {})

    async def steps(self, since: int) -> list[StepRecord] | None:
        """Returns the steps numbered from `since`; None from a foreign server."""
        if not self.is_jserve:
            return None
        steps: list[StepRecord] = []
        while rows := (await self.get(f"/jserve/steps?since={since}")).get("steps"):
            for row in rows:
                known = {name: row[name] for name in StepRecord._fields if name in row}
                steps.append(StepRecord(**known))
            since = steps[-1].step_id + 1
        return steps

    async def get(self, path: str) -> dict[str, Any]:
        """Returns the JSON object at a path; an empty one if there is none."""
        async with self.session.get(self.url + path) as response:
            if response.status != 200:
                return {}
            try:
                found = await response.json(content_type=None)
            except ValueError:
                return {}
        return found if isinstance(found, dict) else {}


@contextlib.asynccontextmanager
async def open_client(
    url: str, extra: Mapping[str, Any] | None = None
) -> AsyncIterator[Client]:
    """Connects to a server that is ready, with the key in OPENAI_API_KEY if it is set.

    Raises:
      ConnectionError: If the server does not answer, or serves no model.
    """
    url = url.rstrip("/").removesuffix("/v1")
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=_TIMEOUT, headers=headers
    ) as session:
        client = Client(session=session, url=url, extra=extra or {})
        try:
            served = (await client.get("/v1/models")).get("data") or [{}]
            client.is_jserve = bool(await client.get("/jserve/info"))
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionError(f"{url} does not answer: {error}") from None
        client.model = str(client.extra.get("model") or served[0].get("id") or "")
        if not client.model:
            raise ConnectionError(f"{url}/v1/models names no model")
        yield client
