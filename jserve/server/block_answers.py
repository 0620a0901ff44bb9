"""Answers that consist of blocks: reasoning, texts and calls, one after the other.

Each is opened, grows and is closed, in OpenAI's responses as in Anthropic's messages.
An answer that is not streamed is made by the same writer.
"""

import contextlib
import dataclasses
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jserve.server.errors import ApiError
from jserve.server.formats import AnswerFormat, ChunkWriter, Usage
from jserve.server.generation import Generation
from jserve.text.answer_parts import Delta

# Names in responses: of a block's text, the beginning of its id, and its type.
_ITEMS = {
    "reasoning": ("reasoning_text", "rs", "reasoning"),
    "text": ("output_text", "msg", "message"),
    "call": ("function_call_arguments", "fc", "function_call"),
}
# Names in messages: of a block's type, that of its deltas, and their text.
_BLOCKS = {
    "reasoning": ("thinking", "thinking_delta", "thinking"),
    "text": ("text", "text_delta", "text"),
    "call": ("tool_use", "input_json_delta", "partial_json"),
}
# An answer that the server had to cut off may be continued.
_REASONS = {"length": "max_tokens", "stop": "end_turn", "abort": "pause_turn"}

Event = tuple[str, dict[str, Any]]
"""The type of an event, and its other fields."""


@dataclasses.dataclass
class Block:
    """One block of an answer; the text of a call is its arguments."""

    kind: str
    index: int
    name: str
    texts: list[str] = dataclasses.field(default_factory=list)
    block_id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex[:24])

    @property
    def text(self) -> str:
        """All of its text so far."""
        return "".join(self.texts)


class BlockWriter(ChunkWriter):
    """Encodes one answer as blocks; subclasses say what the events are."""

    _whole: Callable[[], dict[str, Any]]
    _begin: Callable[[], Iterable[Event]]
    _frame: Callable[[Block, bool], Iterable[Event]]  # its start, or with True its end
    _grow: Callable[[Block, str], Event]
    _end: Callable[[ApiError | None], Iterable[Event]]

    def __init__(self, form: AnswerFormat, generation: Generation, usage: Usage):
        super().__init__(form, 0, usage)
        self._generation = generation
        self._blocks: list[Block] = []
        self._is_open = self._has_begun = self._has_failed = False

    def event(self, text: str | Delta, *_: Any, **__: Any) -> bytes:
        """Returns the events of new text, which may be empty."""
        has_begun, self._has_begun = self._has_begun, True
        parts = Delta(text) if isinstance(text, str) else text
        return self._encode([*([] if has_begun else self._begin()), *self._take(parts)])

    def failure(self, error: ApiError) -> bytes:
        """Returns the event of an error, which is the last one."""
        self._has_failed = True
        return self._encode(self._end(error))

    def end(self) -> bytes:
        """Returns the last events."""
        return self._encode(
            [] if self._has_failed else [*self._close(), *self._end(None)]
        )

    def _take(self, parts: Delta) -> Iterator[Event]:
        calls = list(parts.calls)
        if calls and calls[0].name is None:  # more of the call before all else
            yield from self._add("call", None, calls.pop(0).arguments)
        for kind, text in (("reasoning", parts.reasoning), ("text", parts.content)):
            if text:
                yield from self._add(kind, None, text)
        for _, name, arguments in calls:
            yield from self._add("call", name, arguments)

    def _add(self, kind: str, name: str | None, text: str) -> Iterator[Event]:
        is_same = self._is_open and self._blocks[-1].kind == kind
        if name is not None or not is_same:
            yield from self._close()
            self._is_open = True
            self._blocks.append(Block(kind, len(self._blocks), name or ""))
            yield from self._frame(self._blocks[-1], False)
        if text:
            self._blocks[-1].texts.append(text)
            yield self._grow(self._blocks[-1], text)

    def _close(self) -> Iterable[Event]:
        is_open, self._is_open = self._is_open, False
        return self._frame(self._blocks[-1], True) if is_open else ()

    def _encode(self, events: Iterable[Event]) -> bytes:
        data = ((name, json.dumps({"type": name, **fields})) for name, fields in events)
        return "".join(f"event: {name}\ndata: {one}\n\n" for name, one in data).encode()

    def answer(self, parts: Iterable[str | Delta]) -> bytes:
        """Returns the body of an answer that is not streamed."""
        for one in parts:
            for _ in self._take(Delta(one) if isinstance(one, str) else one):
                pass  # events that nobody gets
        return json.dumps(self._whole()).encode()


class ResponseWriter(BlockWriter):
    """Encodes a response of OpenAI's, whose blocks are items."""

    _num_events = 0

    def _encode(self, events: Iterable[Event]) -> bytes:
        numbered = [*enumerate(events, self._num_events)]
        self._num_events += len(numbered)
        return super()._encode(
            (name, {"sequence_number": index, **one}) for index, (name, one) in numbered
        )

    def _begin(self) -> Iterable[Event]:
        fields = {"response": self._response("in_progress")}
        return [("response.created", fields), ("response.in_progress", fields)]

    def _frame(self, block: Block, is_end: bool) -> Iterable[Event]:
        item = self._item(block, "completed" if is_end else "in_progress")
        parts = item.get("content", [])
        name = f"content_part.{'done' if is_end else 'added'}"
        framed = [self._event(block, name, part=one) for one in parts]
        if is_end:
            fields = parts[0] if parts else item
            kept = fields.keys() & {"text", "logprobs", "arguments", "name"}
            name, done = _ITEMS[block.kind][0], {one: fields[one] for one in kept}
            last = self._event(block, "output_item.done", item=item)
            return [self._event(block, f"{name}.done", **done), *framed, last]
        empty = item | {"content": []} if parts else item
        return [self._event(block, "output_item.added", item=empty), *framed]

    def _grow(self, block: Block, text: str) -> Event:
        more: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
        return self._event(block, f"{_ITEMS[block.kind][0]}.delta", delta=text, **more)

    def _end(self, error: ApiError | None) -> Iterable[Event]:
        whole = self._whole()
        if error is not None:
            fault = {"code": error.code or "server_error", "message": str(error)}
            whole |= {"status": "failed", "error": fault, "incomplete_details": None}
        yield f"response.{whole['status']}", {"response": whole}

    def _whole(self) -> dict[str, Any]:
        reason = self._generation.shown_reason
        if reason in ("stop", "tool_calls"):
            return self._response("completed")
        reason = "max_output_tokens" if reason == "length" else reason
        return self._response("incomplete") | {"incomplete_details": {"reason": reason}}

    def _response(self, status: str) -> dict[str, Any]:
        usage = None if status == "in_progress" else self._usage()
        text = json.dumps(usage).replace("prompt_", "input_")
        return {
            "id": self._form.response_id,
            "object": "response",
            "created_at": self._form.created_s,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._form.model,
            "output": [self._item(one, "completed") for one in self._blocks],
            "usage": json.loads(text.replace("completion_", "output_")),
            **{"background": False, "previous_response_id": None, "store": False},
            "truncation": "disabled",
            **self._form.echoed,
        }

    def _event(self, block: Block, kind: str, /, **fields: Any) -> Event:
        at: dict[str, Any] = {"output_index": block.index}
        if "item" not in fields:
            at["item_id"] = f"{_ITEMS[block.kind][1]}_{block.block_id}"
            at |= {} if block.kind == "call" else {"content_index": 0}
        return f"response.{kind}", at | fields

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        text, prefix, kind = _ITEMS[block.kind]
        item = {"id": f"{prefix}_{block.block_id}", "type": kind, "status": status}
        part: dict[str, Any] = {"type": text, "text": block.text}
        if block.kind == "call":
            call = {"name": block.name, "arguments": block.text}
            return item | {"call_id": f"call_{block.block_id}"} | call
        if block.kind == "reasoning":
            return item | {"content": [part], "summary": []}
        part |= {"annotations": [], "logprobs": []}
        return item | {"content": [part], "role": "assistant"}


class MessageWriter(BlockWriter):
    """Encodes a message of Anthropic's."""

    def _begin(self) -> Iterable[Event]:
        yield "message_start", {"message": self._message(None, None)}

    def _frame(self, block: Block, is_end: bool) -> Iterable[Event]:
        more = {} if is_end else {"content_block": self._content(block)}
        kind = f"content_block_{'stop' if is_end else 'start'}"
        yield kind, {"index": block.index, **more}

    def _grow(self, block: Block, text: str) -> Event:
        _, kind, name = _BLOCKS[block.kind]
        fields = {"index": block.index, "delta": {"type": kind, name: text}}
        return "content_block_delta", fields

    def _end(self, error: ApiError | None) -> Iterable[Event]:
        if error is not None:
            yield "error", json.loads(error.body_at("messages"))
            return
        whole = self._whole()
        delta = {name: whole[name] for name in ("stop_reason", "stop_sequence")}
        yield "message_delta", {"delta": delta, "usage": whole["usage"]}
        yield "message_stop", {}

    def _whole(self) -> dict[str, Any]:
        reason, found = self._generation.finish_reason or "abort", None
        shown = _REASONS.get(reason, reason)
        if reason == "stop" and any(one.kind == "call" for one in self._blocks):
            shown = "tool_use"
        elif found := self._generation.stop_string:
            shown = "stop_sequence"
        return self._message(shown, found)

    def _message(self, reason: str | None, found: str | None) -> dict[str, Any]:
        usage: dict[str, Any] = self._usage()
        num_cached = usage["prompt_tokens_details"]["cached_tokens"]
        num_thinking = usage["completion_tokens_details"]["reasoning_tokens"]
        return {
            "id": self._form.response_id,
            **{"type": "message", "role": "assistant", "model": self._form.model},
            "content": [self._content(one) for one in self._blocks],
            **{"stop_reason": reason, "stop_sequence": found},
            "usage": {
                "input_tokens": usage["prompt_tokens"] - num_cached,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": num_cached,
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"thinking_tokens": num_thinking},
                **{name: usage[name] for name in ("slo",) if name in usage},
            },
        }

    def _content(self, block: Block) -> dict[str, Any]:
        kind, _, name = _BLOCKS[block.kind]
        if block.kind != "call":
            signature = {"signature": ""} if block.kind == "reasoning" else {}
            return {"type": kind, name: block.text, **signature}
        call = {"type": kind, "id": f"toolu_{block.block_id}", "name": block.name}
        arguments = {}
        with contextlib.suppress(ValueError):  # it is cut off, or wrong
            arguments = json.loads(block.text or "{}")
        return call | {"input": arguments}


WRITERS = {"responses": ResponseWriter, "messages": MessageWriter}


class BlockFormat(AnswerFormat):
    """Format and labels of an answer that consists of blocks."""

    def writer(self, index: int, generation: Generation, usage: Usage) -> BlockWriter:
        """Returns a writer of the only output."""
        return WRITERS[self.door](self, generation, usage)

    def answer(self, generations: Sequence[Generation], usage: Usage) -> bytes:
        """Returns the body of an answer that is not streamed."""
        [one] = generations
        parts = one.parts if one.parser else ["".join(one.texts)]
        return self.writer(0, one, usage).answer(parts)
