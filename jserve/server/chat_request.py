"""POST /v1/chat/completions: a conversation, its tools, and how it is rendered."""

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from jserve.server.errors import ApiError, quote
from jserve.server.protocol import (
    Count,
    GenerationRequest,
    Logprobs,
    Name,
    refuse_unsupported,
)
from jserve.server.tools_input import ToolCall, ToolChoice, call_schema, read_tools
from jserve.text.chat_template import Message

_ROLES = ("system", "developer", "user", "assistant", "tool")


class TextPart(Struct):
    """One part of a turn's content."""

    type: str
    text: str | UnsetType = UNSET


class ChatMessage(Struct):
    """One turn of a conversation, and the fields of a turn that are refused."""

    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    audio: Raw | UnsetType = UNSET
    function_call: Raw | UnsetType = UNSET

    def to_turn(self, path: str) -> Message:
        """Returns the turn as a template takes it.

        Raises:
          ApiError: 400, naming a field under `path`.
        """
        if self.role not in _ROLES:
            where, known = f"{path}.role", ", ".join(_ROLES)
            raise ApiError(f"{where}={quote(self.role)} is not one of {known}", where)
        for name in ("audio", "function_call"):
            if (raw := getattr(self, name)) is not UNSET:
                refuse_unsupported(name, raw, f"{path}.{name}")
        if self.content is None and not self.tool_calls:
            raise ApiError(f"{path}.content is missing", f"{path}.content")
        # "developer" is OpenAI's newer name of "system".
        turn: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": text_of(self.content, f"{path}.content"),
        }
        calls = enumerate(self.tool_calls or ())
        turn["tool_calls"] = [
            one.to_turn(f"{path}.tool_calls.{index}.function.arguments")
            for index, one in calls
        ]
        for name in ("name", "reasoning_content", "tool_call_id"):
            turn[name] = getattr(self, name)
        return {name: value for name, value in turn.items() if value not in (None, [])}


def text_of(content: str | Sequence[TextPart] | None, path: str) -> str:
    """Returns the text of a content, in which each part has to be one.

    Raises:
      ApiError: 400, naming a field under `path`.
    """
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        where = f"{path}.{index}"
        if not part.type.endswith("text"):  # such as OpenAI's input_text
            message = f"{where}.type={quote(part.type)} is not 'text'"
            raise ApiError(message, f"{where}.type")
        if part.text is UNSET:
            raise ApiError(f"{where}.text is missing", f"{where}.text")
        texts.append(part.text)
    return "\n".join(texts)


class ChatRequest(GenerationRequest, kw_only=True):
    """POST /v1/chat/completions.

    Attributes:
      continue_final_message: Whether the answer continues the last turn.
      documents: What the template may show the model.
      chat_template: Name of one of the model's templates.
    """

    content = "messages"

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Count = None
    add_generation_prompt: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs = None
    continue_final_message: bool | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template: Name | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def has_tools(self) -> bool:
        """Whether the model may call tools."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def requires_call(self) -> bool:
        """Whether the answer has to be a call."""
        return self.tool_choice not in (None, "none", "auto")

    @property
    def call_schema(self) -> dict[str, Any] | None:
        """The schema of an answer that has to be a call; see `tools_input`."""
        return call_schema(
            read_tools(self.tools),
            self.tool_choice or "auto",
            is_parallel=self.parallel_tool_calls is not False,
        )

    @property
    def has_generation_prompt(self) -> bool:
        """Whether the prompt ends with the beginning of an assistant's turn."""
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        return self.add_generation_prompt

    def check_together(self) -> None:
        """Refuses fields that contradict each other.

        Raises:
          ApiError: 400, naming one of them.
        """
        super().check_together()
        if self.continue_final_message and self.add_generation_prompt:
            name = "continue_final_message"
            raise ApiError(f"{name} and add_generation_prompt exclude each other", name)
