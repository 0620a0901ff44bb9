"""POST /v1/responses: OpenAI's newer form of a chat, read as a chat.

Nothing is stored: a conversation is sent whole each time, as in chats.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from jserve.server.chat_request import ChatMessage, ChatRequest, joined_text
from jserve.server.errors import ApiError, quote
from jserve.server.protocol import Count, GenerationRequest, JsonSchema, ResponseFormat
from jserve.server.tools_input import (
    NO_SERVER_TOOLS,
    NamedFunction,
    NamedTool,
    ToolChoice,
)

_TEXTS = ("input_text", "output_text", "text")


class _Part(Struct):
    """A part of an item's content."""

    type: str
    text: str | None = None


class _Item(Struct):
    """An item of the input; its type says which fields it has."""

    type: str = "message"
    role: str | None = None
    content: str | list[_Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[_Part] | None = None


class _Tool(Struct):
    """A function that the client runs."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Choice(Struct):
    """The function that has to be called."""

    type: Literal["function"]
    name: str


class _TextFormat(Struct):
    """What the text has to be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    schema: dict[str, Any] | bool | UnsetType = UNSET


class _Text(Struct):
    """How the text is written."""

    format: _TextFormat | None = None


class ResponsesRequest(GenerationRequest, kw_only=True):
    """POST /v1/responses; fields of this server's own are those of chats."""

    content = "input"

    input: str | Annotated[list[_Item], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count = None
    text: _Text | None = None
    tools: list[_Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | _Choice | None = None
    parallel_tool_calls: bool | None = None
    # What changes nothing here.
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    store: bool | None = None
    truncation: str | None = None
    # What needs stored answers.
    background: bool | None = None
    conversation: Raw | UnsetType = UNSET
    previous_response_id: str | None = None
    prompt: Raw | UnsetType = UNSET

    def check_together(self) -> None:
        """Refuses fields that contradict each other, or need a stored answer.

        Raises:
          ApiError: 400, naming one of them.
        """
        super().check_together()
        asked = {
            "background": self.background,
            "conversation": _is_given(self.conversation),
            "previous_response_id": self.previous_response_id,
            "prompt": _is_given(self.prompt),
        }
        for name, value in asked.items():
            if value:
                message = f"{name} is not supported: this server stores no answers"
                raise ApiError(message, name, code="unsupported_parameter")

    def to_chat(self) -> ChatRequest:
        """Returns the chat that it asks for.

        Raises:
          ApiError: 400 if an item cannot be read.
        """
        turns: list[dict[str, Any]] = []
        if self.instructions:
            turns.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            turns.append({"role": "user", "content": self.input})
        else:
            for index, item in enumerate(self.input):
                _add_turn(turns, item, f"input.{index}")
        fields = self.shared()
        fields["max_tokens"] = self.max_output_tokens or self.max_tokens
        form = self.text and self.text.format
        if form and form.type != "text":
            schema = JsonSchema(form.schema) if form.type == "json_schema" else None
            fields["response_format"] = ResponseFormat(form.type, schema)
        choice: ToolChoice | None
        if isinstance(self.tool_choice, _Choice):
            choice = NamedTool("function", NamedFunction(self.tool_choice.name))
        else:
            choice = self.tool_choice
        return ChatRequest(
            **fields,
            messages=msgspec.convert(turns, list[ChatMessage]),
            tools=[_function(one) for one in self.tools or ()] or None,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls,
        )


def _is_given(raw: Raw | UnsetType) -> bool:
    return raw is not UNSET and bytes(raw) != b"null"


def _function(tool: _Tool) -> dict[str, Any]:
    if tool.type != "function" or tool.name is None:
        message = f"tools: type={quote(tool.type)} without a name or not 'function'; "
        raise ApiError(message + NO_SERVER_TOOLS, "tools")
    function = {"name": tool.name, "parameters": tool.parameters or {"type": "object"}}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _add_turn(turns: list[dict[str, Any]], item: _Item, path: str) -> None:
    """Adds an item to the turns of a chat; a call belongs to the turn before it."""
    if item.type == "message":
        if item.role is None:
            raise ApiError(f"{path}.role is missing", f"{path}.role")
        text = joined_text(item.content, _TEXTS, f"{path}.content")
        turns.append({"role": item.role, "content": text})
    elif item.type == "function_call":
        if item.name is None:
            raise ApiError(f"{path}.name is missing", f"{path}.name")
        if not turns or turns[-1]["role"] != "assistant":
            turns.append({"role": "assistant", "content": None})
        function = {"name": item.name, "arguments": item.arguments or "{}"}
        call = {"type": "function", "id": item.call_id, "function": function}
        turns[-1].setdefault("tool_calls", []).append(call)
    elif item.type == "function_call_output":
        text = joined_text(item.output, _TEXTS, f"{path}.output")
        turns.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
    elif item.type != "reasoning":  # templates leave that of earlier turns out
        message = f"{path}.type={quote(item.type)} is not supported by this server"
        raise ApiError(message, f"{path}.type", code="unsupported_parameter")
