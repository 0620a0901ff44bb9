"""Talks to any OpenAI-compatible server, as cheaply as a fair client can.

The one idea: client and server may share two cores, so a stream's bytes are
searched, not parsed: an event of `/v1/completions` is one token. The usage that
ends the stream says how many there were, and settles any difference.
"""

import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Any

import aiohttp
import numpy as np

from jserve.events import StepRecord
from jserve_sched.clock import WallClock
from jserve_sched.report import Failure
from jserve_sched.slo import Slo
from jserve_tools.clients import RequestFailedError, TokenTime
from jserve_tools.workload import WorkloadRequest

APIS = ("completions", "chat")
_STEP_FIELDS = {field.name for field in dataclasses.fields(StepRecord)}
# In JSON with and without blanks; within a text these quotes would be escaped.
_ABORT_MARKS = (b'"finish_reason": "abort"', b'"finish_reason":"abort"')
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=600)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestForm:
    """How requests are written down.

    Attributes:
      api: "completions" sends token ids; "chat" sends a message of one-letter
        words, about one token each, to servers that take no ids.
      extra: fields merged into every body; None removes a field.
      api_key: sent as a bearer token, unless empty.
    """

    api: str = "completions"
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    api_key: str = ""

    def __post_init__(self) -> None:
        if self.api not in APIS:
            raise ValueError(f"api={self.api!r} is not one of {', '.join(APIS)}")

    @property
    def path(self) -> str:
        """The route requests are posted to."""
        return "/v1/chat/completions" if self.api == "chat" else "/v1/completions"

    def body(self, request: WorkloadRequest, model: str) -> bytes:
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
        if self.api == "chat":
            content = words_prompt(request.prompt)
            body["messages"] = [{"role": "user", "content": content}]
        else:
            body["prompt"] = request.prompt.tolist()
        if not request.slo.is_best_effort:
            body["slo"] = slo_body(request.slo)
        body |= self.extra
        kept = {name: value for name, value in body.items() if value is not None}
        return json.dumps(kept, separators=(",", ":")).encode()


def slo_body(slo: Slo) -> dict[str, float]:
    """Returns an objective as the `slo` object of a request's body."""
    return {
        name: value
        for name, value in dataclasses.asdict(slo).items()
        if value is not None
    }


def words_prompt(prompt: np.ndarray) -> str:
    """Returns one single-letter word for each token id."""
    return " ".join(chr(ord("a") + int(token) % 26) for token in prompt)


class EventStream:
    """Splits a server-sent event stream and counts its tokens.

    The newest token is held back until the next one or the end, since only the
    usage at the end tells whether a last event carried a token or just news.
    """

    def __init__(self, *, is_chat: bool):
        self.num_events = 0
        self.num_tokens: int | None = None  # by the server's usage
        self.is_done = False
        self._is_chat = is_chat
        self._rest = b""
        self._fed_s = 0.0
        self._held: TokenTime | None = None

    def feed(self, data: bytes, time_s: float) -> Iterator[TokenTime]:
        """Yields the tokens that `data`, received at `time_s`, brings to light."""
        self._fed_s = time_s
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and self._is_token(line[5:].strip()):
                if self._held is not None:
                    yield self._held
                self._held = TokenTime(self.num_events, time_s)
                self.num_events += 1

    def finish(self) -> Iterator[TokenTime]:
        """Yields what was held back, as many tokens as the usage says.

        Raises:
          RequestFailedError: if the stream broke off.
        """
        if not self.is_done:
            raise RequestFailedError(
                Failure.ERROR, f"the stream broke off after {self.num_events} events"
            )
        # Of an answer that is its own end a chat tells no text: no event, one token.
        held = self._held or TokenTime(0, self._fed_s)
        total = self.num_events if self.num_tokens is None else self.num_tokens
        for index in range(held.place, total):
            yield TokenTime(index, held.time_s)

    @property
    def is_even(self) -> bool:
        """Whether there was one event for each token."""
        return self.num_tokens is None or self.num_tokens == self.num_events

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
        error = json.loads(body)
        return str(error["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


def refusal(status: int, body: bytes) -> RequestFailedError:
    """Returns the failure that a response other than 200 stands for."""
    failure = Failure.ERROR
    if status == 429:
        failure = Failure.REJECTED
    elif status == 400 and b"context_length_exceeded" in body:
        failure = Failure.TOO_LONG
    return RequestFailedError(failure, f"{status}: {error_message(body)}")


class HttpClient:
    """A server behind a URL; made by `open_http_client`."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        form: RequestForm,
        model: str,
        info: Mapping[str, Any] | None,
    ):
        self.num_uneven_streams = 0
        self._session = session
        self._url = url
        self._form = form
        self._model = model
        self._info = info
        self._clock = WallClock()

    def now_s(self) -> float:
        """Returns the client's clock, in seconds."""
        return self._clock.now_s()

    async def send(self, request: WorkloadRequest) -> AsyncGenerator[TokenTime, None]:
        """Yields the request's tokens; closing the iterator disconnects."""
        stream = EventStream(is_chat=self._form.api == "chat")
        try:
            async with self._session.post(
                self._url + self._form.path,
                data=self._form.body(request, self._model),
                headers={"Content-Type": "application/json"},
            ) as response:
                if response.status != 200:
                    raise refusal(response.status, await response.read())
                async for data in response.content.iter_any():
                    for token in stream.feed(data, self.now_s()):
                        yield token
                for token in stream.finish():
                    yield token
        except (aiohttp.ClientError, OSError) as error:
            raise RequestFailedError(Failure.ERROR, repr(error)) from error
        self.num_uneven_streams += not stream.is_even

    async def facts(self) -> Mapping[str, Any]:
        """Returns the server's own description, or just the model it serves."""
        return {"url": self._url, "served_model_name": self._model} | dict(
            await _get_json(self._session, f"{self._url}/jserve/info") or {}
        )

    async def stats(self) -> Mapping[str, Any] | None:
        """Returns the fields of EngineStats; None from a foreign server."""
        if self._info is None:
            return None
        info = await _get_json(self._session, f"{self._url}/jserve/info")
        return None if info is None else info.get("stats")

    async def steps(self, since: int) -> list[StepRecord] | None:
        """Returns the steps numbered from `since`; None from a foreign server."""
        if self._info is None:
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

    async def take_detokenise_s(self) -> float | None:
        """Returns the median the server tells of its recent steps, if it does."""
        if self._info is None:
            return None
        info = await _get_json(self._session, f"{self._url}/jserve/info")
        median_s = ((info or {}).get("publish_s") or {}).get("p50")
        return None if median_s is None else float(median_s)


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
async def open_http_client(url: str, form: RequestForm) -> AsyncIterator[HttpClient]:
    """Connects to a server that is ready.

    Raises:
      ConnectionError: if it does not answer, or serves no model.
    """
    url = url.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {form.api_key}"} if form.api_key else {}
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
        model = form.extra.get("model") or (served[0].get("id") if served else None)
        if not model:
            raise ConnectionError(f"{url}/v1/models names no model")
        yield HttpClient(session, url, form, str(model), info)
