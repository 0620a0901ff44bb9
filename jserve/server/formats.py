"""The formats of an answer that has choices: a completion, and a chat.

All of a chunk but its text and its ending is the same for every token of an output. So
it is encoded once, and a token costs one JSON string escape and one join.
"""

import dataclasses
import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from jserve.server.errors import ApiError
from jserve.server.generation import Generation
from jserve.server.logprobs import LogprobsWriter, Noted
from jserve.text.answer_parts import Delta

EVENT_HEAD = b"data: "
EVENT_TAIL = b"\n\n"
COMMENT_EVENT = b": keep-alive\n\n"  # which clients ignore
DONE_EVENT = b"data: [DONE]\n\n"
_CONTENT = b'"content": '

Usage = Callable[..., dict[str, Any]]
"""Returns OpenAI's `usage`; with `is_final=False` without what became of the SLO."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerFormat:
    """Format and labels of one answer.

    Attributes:
      is_chat: Whether it is a chat's answer, or else a completion.
      door: Path under /v1 of the request.
      echoed: Fields of the request that the answer repeats.
      has_usage: Whether a stream ends with its usage.
      has_continuous_usage: Whether each of its chunks has the usage so far.
      has_token_ids: Whether token ids are sent beside the text.
      has_logprobs: Whether those of the answer are sent, if they are known.
      has_echo: Whether those of the prompt come before them.
      has_prompt_logprobs: Whether those of the prompt are a field, as in vLLM.
      token_bytes: Returns the UTF-8 of a token, for log-probabilities.
    """

    is_chat: bool = True
    response_id: str
    created_s: int
    model: str
    door: str = "chat"
    echoed: dict[str, Any] = dataclasses.field(default_factory=dict)
    has_usage: bool = False
    has_continuous_usage: bool = False
    has_token_ids: bool = False
    has_logprobs: bool = True
    has_echo: bool = False
    has_prompt_logprobs: bool = False
    token_bytes: Callable[[int], bytes] = bytes

    def _top(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.response_id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
        }

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def writer(self, index: int, generation: Generation, usage: Usage) -> "ChunkWriter":
        """Returns a writer of one output."""
        return ChunkWriter(self, index, usage)

    def logprobs_writer(self) -> LogprobsWriter:
        """Returns a writer for the log-probabilities of one output."""
        return LogprobsWriter(self.token_bytes, is_chat=self.is_chat)

    def _choice(self, index: int, one: Generation) -> dict[str, Any]:
        """Returns one output of an answer that is not streamed."""
        text = "".join(one.texts)
        ids = {"token_ids": list(one.tokens)} if self.has_token_ids else {}
        writer = self.logprobs_writer()
        shown = [*(one.scored if self.has_echo else ()), *one.noted]
        logprobs = writer.write(shown) if shown and self.has_logprobs else None
        ending: dict[str, Any] = {
            "logprobs": logprobs,
            "finish_reason": one.shown_reason,
            **ids,
        }
        if self.has_prompt_logprobs:
            ending["prompt_logprobs"] = writer.of_prompt(one.scored)
        if self.is_chat:
            message = {"role": "assistant", "content": text, "refusal": None}
            if one.parser is not None:
                message |= _whole_message(one.parts)
            return {"index": index, "message": message, **ending}
        return {"index": index, "text": text, **ending}

    def answer(self, generations: Sequence[Generation], usage: Usage) -> bytes:
        """Returns the body of an answer that is not streamed."""
        choices = [self._choice(*one) for one in enumerate(generations)]
        top = self._top("chat.completion" if self.is_chat else "text_completion")
        if self.is_chat and self.has_prompt_logprobs:
            top["prompt_logprobs"] = choices[0].pop("prompt_logprobs")
        return json.dumps(top | {"choices": choices, "usage": usage()}).encode()


def _new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _whole_message(parts: Sequence[Delta]) -> dict[str, Any]:
    """Returns the fields of an answer that was taken apart."""
    calls: list[dict[str, Any]] = []
    for index, name, arguments in (call for one in parts for call in one.calls):
        if name is not None:
            function = {"name": name, "arguments": ""}
            calls.append(
                {"id": _new_call_id(), "type": "function", "function": function}
            )
        calls[index]["function"]["arguments"] += arguments
    content = "".join(one.content for one in parts)
    fields: dict[str, Any] = {"content": content}
    if reasoning := "".join(one.reasoning for one in parts):
        fields["reasoning_content"] = reasoning
    if calls:
        fields |= {"content": content or None, "tool_calls": calls}
    return fields


def _delta_fields(parts: Delta) -> dict[str, Any]:
    """Returns the fields of more of an answer."""
    fields: dict[str, Any] = {}
    if parts.content:
        fields["content"] = parts.content
    if parts.reasoning:
        fields["reasoning_content"] = parts.reasoning
    calls = []
    for index, name, arguments in parts.calls:
        call: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
        if name is not None:
            call |= {"id": _new_call_id(), "type": "function"}
            call["function"]["name"] = name
        calls.append(call)
    return fields | ({"tool_calls": calls} if calls else {})


class ChunkWriter:
    """Encodes the stream of one output, an event for each token."""

    def __init__(self, form: AnswerFormat, index: int, usage: Usage = dict):
        self._form, self._usage = form, usage
        top = json.dumps(form._top(form._chunk_kind))[:-1]
        start = f'data: {top}, "choices": [{{"index": {index}, '
        head, role = f'{start}"text": ', ""
        if form.is_chat:
            head, role = f'{start}"delta": {{', '"role": "assistant", '
        content = _CONTENT if form.is_chat else b""
        self._head = head.encode() + content
        self._next_head = f"{head}{role}".encode() + content
        self._middle = b'}, "logprobs": ' if form.is_chat else b', "logprobs": '
        self._tail = b'}], "usage": null}\n\n' if form.has_usage else b"}]}\n\n"
        self._is_continuous = form.has_usage and form.has_continuous_usage
        self._is_plain = not (form.has_token_ids or self._is_continuous)
        self._plain_ending = self._middle + b'null, "finish_reason": null' + self._tail
        self._logprobs = form.logprobs_writer()

    def event(
        self,
        text: str | Delta,
        finish_reason: str | None,
        tokens: Sequence[int],
        noted: Sequence[Noted],
    ) -> bytes:
        """Returns the event of new text, which may be empty, and of its tokens.

        There is none if text that is taken apart has nothing new to tell.
        """
        if isinstance(text, Delta) and not (text or finish_reason or noted):
            return b""
        head, self._next_head = self._next_head, self._head  # the role is sent once
        if isinstance(text, Delta):
            head = head.removesuffix(_CONTENT)
            escaped = json.dumps(_delta_fields(text))[1:-1].encode()
            head = head if escaped else head.removesuffix(b", ")
        else:
            escaped = json.dumps(text).encode()
        if finish_reason is None and self._is_plain and not noted:
            return head + escaped + self._plain_ending
        ending = json.dumps(self._logprobs.write(noted)) if noted else "null"
        ending += f', "finish_reason": {json.dumps(finish_reason)}'
        if self._form.has_token_ids:
            ending += f', "token_ids": {json.dumps(list(tokens))}'
        tail = self._tail
        if self._is_continuous:
            usage = json.dumps(self._usage(is_final=False)).encode()
            tail = b'}], "usage": ' + usage + b"}\n\n"
        return head + escaped + self._middle + ending.encode() + tail

    def failure(self, error: ApiError) -> bytes:
        """Returns the event of an error."""
        return EVENT_HEAD + error.body + EVENT_TAIL

    def end(self) -> bytes:
        """Returns what ends the stream of all outputs."""
        if not self._form.has_usage:
            return DONE_EVENT
        chunk = self._form._top(self._form._chunk_kind) | {"choices": []}
        chunk["usage"] = self._usage()
        return EVENT_HEAD + json.dumps(chunk).encode() + EVENT_TAIL + DONE_EVENT
