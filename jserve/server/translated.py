"""OpenAI's /v1/responses and Anthropic's /v1/messages, which become chats.

Both send pieces: a turn, or a part of one, such as a text, a call or a call's result.
Nothing is stored.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from jserve.server.chat_request import ChatMessage, ChatRequest, TextPart, text_of
from jserve.server.errors import ApiError, quote
from jserve.server.protocol import (
    MAX_STOPS,
    Count,
    GenerationRequest,
    JsonSchema,
    ResponseFormat,
    Stop,
)
from jserve.server.tools_input import (
    CalledFunction,
    FunctionName,
    NamedFunction,
    NamedTool,
    ToolCall,
    ToolChoice,
)

_KINDS = "message, *text, function_call*, reasoning, thinking, tool_use or tool_result"


class Piece(TextPart, kw_only=True):
    """A turn or a part of one; which fields it has depends on its type."""

    type: str = "message"
    role: str = "user"
    content: "str | list[Piece] | None" = None
    output: str | list[TextPart] | None = None
    summary: list[TextPart] | None = None
    thinking: str = ""
    name: str = ""
    arguments: str = ""
    input: dict[str, Any] | None = None
    id: str | None = None
    call_id: str | None = None
    tool_use_id: str | None = None

    def turns(self, where: str, role: str) -> Iterator[ChatMessage]:
        """Yields it as turns of a chat; errors name a field under the path `where`."""
        match self.type:
            case "message":
                if isinstance(self.content, str):
                    yield ChatMessage(self.role, self.content)
                    return
                for index, one in enumerate(self.content or ()):
                    yield from one.turns(f"{where}.content.{index}", self.role)
            case "text" | "input_text" | "output_text":
                yield ChatMessage(role, self.text or "")
            case "reasoning" | "thinking":
                text = self.thinking or text_of(
                    self.content or self.summary, f"{where}.content"
                )
                yield ChatMessage("assistant", "", reasoning_content=text)
            case "function_call" | "tool_use":
                given = self.input
                arguments = self.arguments if given is None else json.dumps(given)
                function = CalledFunction(self.name, arguments)
                call = ToolCall(function, self.call_id or self.id)
                call.to_turn(f"{where}.arguments")
                yield ChatMessage("assistant", "", tool_calls=[call])
            case "function_call_output" | "tool_result":
                name = "content" if self.output is None else "output"
                text = text_of(getattr(self, name), f"{where}.{name}")
                call_id = self.call_id or self.tool_use_id
                yield ChatMessage("tool", text, tool_call_id=call_id)
            case kind if kind != "redacted_thinking":
                name = f"{where}.type"
                raise ApiError(f"{name}={quote(kind)} is none of {_KINDS}", name)


def _merged(turns: Iterable[ChatMessage]) -> list[ChatMessage]:
    """Returns turns of which adjacent ones of a role, but tools', are one."""
    found: list[ChatMessage] = []
    for one in turns:
        last = found[-1] if found else None
        if last is None or last.role != one.role or one.role == "tool":
            found.append(one)
            continue
        last.content = "\n".join(filter(None, map(str, (last.content, one.content))))
        last.tool_calls = [*(last.tool_calls or ()), *(one.tool_calls or ())]
        last.reasoning_content = last.reasoning_content or one.reasoning_content
    return found


class FlatTool(Struct, omit_defaults=True):
    """A function that the model may call; `input_schema` is Anthropic's word."""

    name: FunctionName
    type: Literal["function", "custom"] | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    input_schema: dict[str, Any] | None = None

    def tool(self) -> dict[str, Any]:
        """Returns the tool as a chat has it."""
        function = msgspec.to_builtins(self)
        function.pop("type", None)
        if (schema := function.pop("input_schema", None)) is not None:
            function["parameters"] = schema
        return {"type": "function", "function": function}


class FlatChoice(Struct, omit_defaults=True):
    """Whether tools have to be called, and which one."""

    type: Literal["auto", "none", "any", "tool", "function"]
    name: str = ""
    disable_parallel_tool_use: bool = False

    def choice(self) -> ToolChoice:
        """Returns the choice as a chat has it."""
        if self.type in ("auto", "none"):
            return self.type
        named = NamedTool("function", NamedFunction(self.name))
        return "required" if self.type == "any" else named


class OutputFormat(Struct, omit_defaults=True):
    """What the answer has to be."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | bool | UnsetType = UNSET


class OutputOptions(Struct):
    """How the answer is written."""

    format: OutputFormat | None = None

    def response_format(self) -> ResponseFormat | None:
        """Returns the format as a chat has it."""
        if (form := self.format) is None:
            return None
        return ResponseFormat(form.type, JsonSchema(form.schema))


class TranslatedRequest(GenerationRequest, kw_only=True):
    """A request in another form, which becomes a chat of one answer."""

    door: ClassVar[str]  # its path under /v1, and the form of the answer
    instructed: ClassVar[str]  # the field of the first turn, which is the system's
    echoes: ClassVar[dict[str, Any]] = {}  # fields that answers repeat, with defaults
    refused: ClassVar = {
        **{"n": (1,), "return_token_ids": (False,)},
        **{"prompt_logprobs": (), "response_format": ()},
    }

    tools: list[FlatTool] | None = None

    def fields(self) -> dict[str, Any]:
        """Returns fields of the chat that have other names."""
        raise NotImplementedError

    def echoed(self) -> dict[str, Any]:
        """Returns the fields that the answer repeats."""
        asked = ((name, getattr(self, name)) for name in self.echoes)
        given = {name: value for name, value in asked if value is not None}
        return self.echoes | dict(msgspec.to_builtins(given))

    def chat(self) -> ChatRequest:
        """Returns the chat; a turn of the assistant at its end is continued.

        Raises:
          ApiError: 400 if a part of it has no place in one.
        """
        names = GenerationRequest.__struct_fields__
        shared = {name: getattr(self, name) for name in names}
        turns = _merged(self._turns())
        if not turns:
            raise ApiError(f"{self.content} is empty", self.content)
        is_open = turns[-1].role == "assistant" and not turns[-1].tool_calls
        return ChatRequest(
            messages=turns,
            tools=[one.tool() for one in self.tools or ()],
            continue_final_message=is_open,
            **(shared | self.fields()),
        )

    def _turns(self) -> Iterator[ChatMessage]:
        for name, role in ((self.instructed, "system"), (self.content, "user")):
            given = getattr(self, name)
            if isinstance(given, str):
                yield ChatMessage(role, given)
                continue
            for index, one in enumerate(given or ()):
                yield from one.turns(f"{name}.{index}", role)


class ResponsesRequest(TranslatedRequest, kw_only=True):
    """POST /v1/responses."""

    content = "input"
    instructed = "instructions"
    door = "responses"
    echoes: ClassVar = {
        **dict.fromkeys(["instructions", "max_output_tokens", "temperature", "top_p"]),
        **{"metadata": {}, "parallel_tool_calls": True, "text": None},
        **{"tool_choice": "auto", "tools": []},
    }
    renamed: ClassVar = {
        **{"messages": "input", "max_tokens": "max_output_tokens"},
        **{"response_format.json_schema": "text.format", "response_format": "text"},
    }
    refused: ClassVar = TranslatedRequest.refused | {
        **{"background": (False,), "truncation": ("disabled",), "max_tokens": ()},
        **{"conversation": (), "previous_response_id": (), "prompt": ()},
        "include": ([], ["reasoning.encrypted_content"]),
    }

    input: str | Annotated[list[Piece], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count = None
    text: OutputOptions | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, Any] | None = None

    def fields(self) -> dict[str, Any]:
        """Returns fields of the chat that have other names."""
        choice = self.tool_choice
        return {
            "max_tokens": self.max_output_tokens,
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": self.text and self.text.response_format(),
            "tool_choice": getattr(choice, "choice", lambda: choice)(),
        }


class CountRequest(TranslatedRequest, kw_only=True):
    """POST /v1/messages/count_tokens."""

    content = "messages"
    instructed = "system"
    door = "messages"
    renamed: ClassVar = {"stop": "stop_sequences", "response_format": "output_config"}
    refused: ClassVar = TranslatedRequest.refused | {
        **{"container": (), "mcp_servers": ([],), "stop": ()}
    }

    messages: Annotated[list[Piece], Meta(min_length=1)]
    system: str | list[Piece] | None = None
    stop_sequences: Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    tool_choice: FlatChoice | None = None
    output_config: OutputOptions | None = None

    def fields(self) -> dict[str, Any]:
        """Returns fields of the chat that have other names."""
        options, choice, tier = self.output_config, self.tool_choice, self.service_tier
        return {
            "parallel_tool_calls": not (choice and choice.disable_parallel_tool_use),
            "response_format": options and options.response_format(),
            "service_tier": "standard" if tier == "standard_only" else tier,
            "stop": self.stop_sequences,
            "tool_choice": choice and choice.choice(),
        }


class MessagesRequest(CountRequest, kw_only=True):
    """POST /v1/messages."""

    max_tokens: Count
