"""The client: the same for every server, a fixed number of requests in flight.

The one idea: it trusts no server's speed claims and little of its format. An
answer counts if its stream ended well and its `usage` says that it has the tokens
that were asked for; text is timed but not read, so that the client costs little.
"""

import asyncio
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp

_TIMEOUT_S = 600.0


class BadAnswerError(Exception):
    """A server answered otherwise than it was asked to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer.

    Attributes:
      prompt_tokens: tokens the server counted in the prompt.
      output_tokens: tokens it says it made.
      ttft_s: from sending to the first event.
      e2e_s: from sending to the end of the stream.
    """

    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    e2e_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """All answers of a run, and the seconds from the first send to the last end."""

    elapsed_s: float
    answers: list[Answer]


def run_closed_loop(
    url: str,
    *,
    prompts: Sequence[str],
    num_clients: int,
    max_tokens: int,
    body: dict[str, Any],
) -> Result:
    """Sends all prompts, `num_clients` at a time, and waits for the answers.

    Args:
      url: of the server, without a path.
      prompts: one request each.
      num_clients: requests in flight.
      max_tokens: tokens of each answer.
      body: further fields of each request, the model's name among them.

    Raises:
      BadAnswerError: if an answer is not what was asked for.
    """
    return asyncio.run(_run(url, prompts, num_clients, max_tokens, body))


async def _run(
    url: str,
    prompts: Sequence[str],
    num_clients: int,
    max_tokens: int,
    body: dict[str, Any],
) -> Result:
    base = {
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **body,
    }
    waiting = iter(prompts)
    answers: list[Answer] = []
    connector = aiohttp.TCPConnector(limit=num_clients)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as group,
    ):
        start_s = time.perf_counter()
        for _ in range(num_clients):
            group.create_task(
                _client(session, f"{url}/v1/completions", base, waiting, answers)
            )
    return Result(elapsed_s=time.perf_counter() - start_s, answers=answers)


async def _client(
    session: aiohttp.ClientSession,
    url: str,
    base: dict[str, Any],
    waiting: Iterator[str],
    answers: list[Answer],
) -> None:
    for prompt in waiting:
        answer = await _ask(session, url, {**base, "prompt": prompt})
        if answer.output_tokens != base["max_tokens"]:
            raise BadAnswerError(
                f"{answer.output_tokens} tokens, asked were {base['max_tokens']}"
            )
        answers.append(answer)


async def _ask(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> Answer:
    start_s = time.perf_counter()
    ttft_s = 0.0
    usage: dict[str, int] | None = None
    async with session.post(url, json=body) as response:
        if response.status != 200:
            text = await response.text()
            raise BadAnswerError(f"status {response.status}: {text[:300]}")
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            if not ttft_s:
                ttft_s = time.perf_counter() - start_s
            # Only the last events carry a usage object; the rest stays unread.
            if b'"usage":{' in line or b'"usage": {' in line:
                usage = json.loads(line.removeprefix(b"data:"))["usage"]
            elif b'"error"' in line:
                raise BadAnswerError(f"an error in the stream: {line[:300]!r}")
    e2e_s = time.perf_counter() - start_s
    if usage is None:
        raise BadAnswerError("the stream held no usage")
    return Answer(
        prompt_tokens=usage["prompt_tokens"],
        output_tokens=usage["completion_tokens"],
        ttft_s=ttft_s,
        e2e_s=e2e_s,
    )
