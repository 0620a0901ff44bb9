"""OpenAI's format of a response: a list of items, with events for each of them."""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from jserve.server.blocks import Block, Blocks, blocks_of, encode_event
from jserve.server.chat_request import ChatRequest
from jserve.server.errors import ApiError
from jserve.server.formats import Usage
from jserve.server.generation import Generation
from jserve.server.logprobs import Noted
from jserve.server.tools_input import NamedTool
from jserve.text.answer_parts import Delta


class ResponsesFormat:
    """Writes an answer as OpenAI's responses.

    Attributes:
      response_id: Id of the answer.
    """

    def __init__(self, response_id: str, model: str, body: ChatRequest):
        self.response_id = response_id
        self._top = {
            "id": response_id,
            "object": "response",
            "created_at": int(time.time()),
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": body.max_tokens,
            "model": model,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": body.tool_choice if body.requires_call else "auto",
            "tools": [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "metadata": {},
        }
        if isinstance(body.tool_choice, NamedTool):
            name = body.tool_choice.function.name
            self._top["tool_choice"] = {"type": "function", "name": name}
        self._blocks = Blocks()
        self._item_ids: list[str] = []
        self._num_events = 0
        self._num_ended = 0  # blocks

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        return self._top | {"status": status, "output": [], "usage": None} | fields

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._num_events += 1
        number = {"sequence_number": self._num_events - 1}
        return encode_event(f"response.{kind}", number | fields)

    def writer(self, index: int) -> "ResponsesFormat":
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
                events += self._end_block() + self._begin_block(block)
            name = "function_call_arguments" if block.kind == "call" else _part(block)
            events += self._event(f"{name}.delta", **self._place(block), delta=more)
        return events

    def _start(self) -> bytes:
        if self._num_events:
            return b""
        begun = self._response("in_progress")
        events = self._event("created", response=begun)
        return events + self._event("in_progress", response=begun)

    def _place(self, block: Block) -> dict[str, Any]:
        place = {"item_id": self._item_ids[block.index], "output_index": block.index}
        if block.kind == "call":
            return place
        more: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
        return place | {"content_index": 0} | more

    def _begin_block(self, block: Block) -> bytes:
        self._item_ids.append(_item_id(block))
        item = _item(block, self._item_ids[-1], status="in_progress")
        events = self._event("output_item.added", output_index=block.index, item=item)
        if block.kind != "call":
            part = _content(block, "")
            place = self._place(block)
            place.pop("logprobs", None)
            events += self._event("content_part.added", **place, part=part)
        return events

    def _end_block(self) -> bytes:
        """Returns the events that end the last block, if there is one."""
        if not self._blocks or len(self._item_ids) == self._num_ended:
            return b""
        block = self._blocks[self._num_ended]
        place, item_id = self._place(block), self._item_ids[block.index]
        self._num_ended += 1
        if block.kind == "call":
            name, value = "function_call_arguments.done", {"arguments": block.text}
            events = self._event(name, **place, name=block.name, **value)
        else:
            events = self._event(f"{_part(block)}.done", **place, text=block.text)
            place.pop("logprobs", None)
            part = _content(block, block.text)
            events += self._event("content_part.done", **place, part=part)
        item = _item(block, item_id)
        return events + self._event(
            "output_item.done", output_index=block.index, item=item
        )

    def ending(self, generations: Sequence[Generation], usage: Usage) -> bytes:
        """Returns the last events, if it has not failed."""
        [one] = generations
        if one.error is not None:
            return b""
        events = self._start() + self._end_block()
        ids = self._item_ids
        items = [
            _item(one, item_id) for one, item_id in zip(self._blocks, ids, strict=True)
        ]
        status, ended = self._ended(one, items, usage)
        return events + self._event(status, response=ended)

    def _ended(
        self, one: Generation, items: list[dict[str, Any]], usage: Usage
    ) -> tuple[str, dict[str, Any]]:
        """Returns the status of an answer that has ended, and the answer."""
        details, status = None, "completed"
        if one.shown_reason not in ("stop", "tool_calls"):
            status = "incomplete"
            details = {"reason": "max_output_tokens"}
        return status, self._response(
            status, output=items, incomplete_details=details, usage=_usage(usage)
        )

    def failure(self, error: ApiError) -> bytes:
        """Returns the event of an error in a stream."""
        row = {"code": error.code or "server_error", "message": str(error)}
        events = self._start()
        return events + self._event(
            "failed", response=self._response("failed", error=row)
        )

    def refusal(self, error: ApiError) -> bytes:
        """Returns the body of an answer that is an error."""
        return error.body

    def answer(self, generations: Sequence[Generation], usage: Usage) -> bytes:
        """Returns the body of an answer that is not streamed."""
        [one] = generations
        items = [_item(block, _item_id(block)) for block in blocks_of(one)]
        return json.dumps(self._ended(one, items, usage)[1]).encode()


def _usage(usage: Usage) -> dict[str, Any]:
    reasoning = usage.get("completion_tokens_details", {"reasoning_tokens": 0})
    found = {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": usage["prompt_tokens_details"],
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": reasoning,
        "total_tokens": usage["total_tokens"],
    }
    return found | ({"slo": usage["slo"]} if "slo" in usage else {})


def _item_id(block: Block) -> str:
    prefix = {"reasoning": "rs", "text": "msg", "call": "fc"}[block.kind]
    return f"{prefix}_{uuid.uuid4().hex}"


def _part(block: Block) -> str:
    return "reasoning_text" if block.kind == "reasoning" else "output_text"


def _content(block: Block, text: str) -> dict[str, Any]:
    part = {"type": _part(block), "text": text}
    return part | ({"annotations": [], "logprobs": []} if block.kind == "text" else {})


def _item(block: Block, item_id: str, *, status: str = "completed") -> dict[str, Any]:
    """Returns an item of the output; one in progress has no content yet."""
    is_whole = status == "completed"
    item: dict[str, Any] = {"id": item_id, "status": status}
    content = [_content(block, block.text)] if is_whole else []
    if block.kind == "reasoning":
        return item | {"type": "reasoning", "summary": [], "content": content}
    if block.kind == "text":
        return item | {"type": "message", "role": "assistant", "content": content}
    arguments = block.text if is_whole else ""
    call = {"type": "function_call", "call_id": block.block_id, "name": block.name}
    return item | call | {"arguments": arguments}
