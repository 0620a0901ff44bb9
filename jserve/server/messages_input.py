"""POST /v1/messages: Anthropic's form of a chat, read as a chat."""

import json
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from jserve.server.chat_request import ChatMessage, ChatRequest, joined_text
from jserve.server.errors import ApiError, quote
from jserve.server.protocol import GenerationRequest, StopStrings
from jserve.server.tools_input import (
    NamedFunction,
    NamedTool,
    ToolChoice,
)

_CHOICES: dict[str, ToolChoice] = {"auto": "auto", "any": "required", "none": "none"}


class _Part(Struct):
    """A block of a turn; its type says which fields it has."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: "str | list[_Part] | None" = None


class _Turn(Struct):
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    content: str | list[_Part]


class _Tool(Struct):
    """A tool that the client runs."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class _Choice(Struct):
    """Whether a tool has to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class MessagesRequest(GenerationRequest, kw_only=True):
    """POST /v1/messages; fields of this server's own are those of chats."""

    content = "messages"

    messages: Annotated[list[_Turn], Meta(min_length=1)]
    system: str | list[_Part] | None = None
    stop_sequences: StopStrings | None = None
    tools: list[_Tool] | None = None
    tool_choice: _Choice | None = None
    metadata: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None

    def to_chat(self) -> ChatRequest:
        """Returns the chat that it asks for.

        Raises:
          ApiError: 400 if a part of a turn cannot be read.
        """
        turns: list[dict[str, Any]] = []
        if system := joined_text(self.system, ("text",), "system"):
            turns.append({"role": "system", "content": system})
        for index, turn in enumerate(self.messages):
            turns += _turns(turn, f"messages.{index}.content")
        fields = self.shared()
        fields["stop"] = self.stop_sequences or self.stop
        if self.service_tier == "standard_only":
            fields["service_tier"] = "standard"
        choice = self.tool_choice
        tool_choice: ToolChoice | None = None
        if choice is None:
            pass
        elif choice.type == "tool":
            if choice.name is None:
                raise ApiError("tool_choice.name is missing", "tool_choice.name")
            tool_choice = NamedTool("function", NamedFunction(choice.name))
        else:
            tool_choice = _CHOICES[choice.type]
        return ChatRequest(
            **fields,
            messages=msgspec.convert(turns, list[ChatMessage]),
            tools=[_function(one) for one in self.tools or ()] or None,
            tool_choice=tool_choice,
            parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
        )


def _function(tool: _Tool) -> dict[str, Any]:
    if tool.input_schema is None:
        message = (
            f"tools: {quote(tool.name)} has no input_schema; tools that the server "
        )
        raise ApiError(message + "runs are not supported", "tools")
    function = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _turns(turn: _Turn, path: str) -> list[dict[str, Any]]:
    """Returns a turn as turns of a chat: results of tools have their own."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    results: list[dict[str, Any]] = []
    texts: list[_Part] = []
    own: dict[str, Any] = {"role": turn.role}
    for index, part in enumerate(turn.content):
        where = f"{path}.{index}"
        if part.type == "tool_result":
            text = joined_text(part.content, ("text",), f"{where}.content")
            call_id = part.tool_use_id
            results.append({"role": "tool", "tool_call_id": call_id, "content": text})
        elif part.type == "tool_use" and turn.role == "assistant":
            function = {"name": part.name, "arguments": json.dumps(part.input or {})}
            if part.name is None:
                raise ApiError(f"{where}.name is missing", f"{where}.name")
            call = {"type": "function", "id": part.id, "function": function}
            own.setdefault("tool_calls", []).append(call)
        elif part.type == "thinking":
            own["reasoning_content"] = part.thinking
        elif part.type != "redacted_thinking":
            texts.append(part)
    if texts or "tool_calls" in own:
        own["content"] = joined_text(texts, ("text",), path)
        return [*results, own]
    return results or [own | {"content": ""}]
