"""Anthropic's format of an answer: a message of blocks."""

import json
from collections.abc import Sequence
from typing import Any

from jserve.server.blocks import Block, Blocks, blocks_of, encode_event
from jserve.server.errors import ApiError
from jserve.server.formats import Usage
from jserve.server.generation import Generation
from jserve.server.logprobs import Noted
from jserve.text.answer_parts import Delta

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessagesFormat:
    """Writes an answer as Anthropic does.

    Attributes:
      response_id: Id of the answer.
    """

    def __init__(self, response_id: str, model: str, num_prompt_tokens: int):
        self.response_id = response_id
        self._model = model
        self._num_prompt_tokens = num_prompt_tokens
        self._blocks = Blocks()
        self._has_begun = False

    def _message(self, **fields: Any) -> dict[str, Any]:
        return {
            "id": self.response_id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": self._num_prompt_tokens, "output_tokens": 0},
        } | fields

    def writer(self, index: int) -> "MessagesFormat":
        """Returns itself, since there is one output."""
        del index
        return self

    def event(
        self,
        text: str | Delta,
        finish_reason: str | None,
        tokens: Sequence[int],
        noted: Sequence[Noted],
    ) -> bytes:
        """Returns the events of new text."""
        del finish_reason, tokens, noted
        events = self._start()
        for block, more, is_new in self._blocks.push(text):
            if is_new:
                events += self._stop(block.index - 1)
                start = {"index": block.index, "content_block": _block(block, is_new)}
                events += encode_event("content_block_start", start)
            delta = {"index": block.index, "delta": _delta(block, more)}
            events += encode_event("content_block_delta", delta)
        return events

    def _start(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        return encode_event("message_start", {"message": self._message()})

    def _stop(self, index: int) -> bytes:
        return (
            encode_event("content_block_stop", {"index": index}) if index >= 0 else b""
        )

    def ending(self, generations: Sequence[Generation], usage: Usage) -> bytes:
        """Returns the last events, if it has not failed."""
        [one] = generations
        if one.error is not None:
            return b""
        delta = {"delta": _ending(one), "usage": _usage(usage)}
        events = self._start() + self._stop(len(self._blocks) - 1)
        events += encode_event("message_delta", delta)
        return events + encode_event("message_stop", {})

    def failure(self, error: ApiError) -> bytes:
        """Returns the event of an error in a stream."""
        return b"event: error\ndata: " + self.refusal(error) + b"\n\n"

    def refusal(self, error: ApiError) -> bytes:
        """Returns the body of an answer that is an error."""
        return messages_error(error)

    def answer(self, generations: Sequence[Generation], usage: Usage) -> bytes:
        """Returns the body of an answer that is not streamed."""
        [one] = generations
        content = [_block(block) for block in blocks_of(one)]
        message = self._message(content=content, **_ending(one), usage=_usage(usage))
        return json.dumps(message).encode()


def _ending(one: Generation) -> dict[str, Any]:
    stop, reason = one.stop_string, one.shown_reason or ""
    return {
        "stop_reason": "stop_sequence" if stop else _REASONS.get(reason, "end_turn"),
        "stop_sequence": stop,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    found = {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
    }
    return found | ({"slo": usage["slo"]} if "slo" in usage else {})


def _block(block: Block, is_empty: bool = False) -> dict[str, Any]:
    text = "" if is_empty else block.text
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": text, "signature": ""}
    if block.kind == "text":
        return {"type": "text", "text": text}
    call = {"type": "tool_use", "id": block.block_id, "name": block.name}
    return call | {"input": {} if is_empty else block.arguments}


def _delta(block: Block, more: str) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "thinking_delta", "thinking": more}
    if block.kind == "text":
        return {"type": "text_delta", "text": more}
    return {"type": "input_json_delta", "partial_json": more}


def messages_error(error: ApiError) -> bytes:
    """Returns the body of an error in Anthropic's form."""
    kind = _ERRORS.get(error.status, "invalid_request_error")
    row = {"type": kind, "message": str(error)}
    return json.dumps({"type": "error", "error": row}).encode()
