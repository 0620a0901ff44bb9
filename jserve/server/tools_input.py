"""Tools of a chat, and what its answer has to be to call them."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from jserve.server.errors import ApiError, quote

_NAME = r"^[a-zA-Z0-9_.-]{1,64}$"


class Function(Struct):
    """A function that the model may call."""

    name: Annotated[str, Meta(pattern=_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct):
    """A tool: a function."""

    type: Literal["function"]
    function: Function


class NamedFunction(Struct):
    """The function that has to be called."""

    name: str


class NamedTool(Struct):
    """`tool_choice` that names a function."""

    type: Literal["function"]
    function: NamedFunction


class CalledFunction(Struct):
    """A function as the model called it; arguments are JSON."""

    name: str
    arguments: str


class ToolCall(Struct):
    """A tool call of an earlier turn."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] = "function"

    def to_turn(self, path: str) -> dict[str, Any]:
        """Returns the call as templates take it, whose arguments are an object.

        Raises:
          ApiError: 400 if the arguments are not JSON, naming a field under `path`.
        """
        name = f"{path}.function.arguments"
        try:
            arguments = msgspec.json.decode(self.function.arguments or "{}")
        except msgspec.DecodeError as error:
            value = quote(self.function.arguments)
            raise ApiError(f"{name}={value} is not JSON: {error}", name) from None
        function = {"name": self.function.name, "arguments": arguments}
        return {"type": "function", "id": self.id, "function": function}


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def read_tools(tools: list[dict[str, Any]] | None) -> list[Tool]:
    """Returns the tools of a body, which templates get as they were sent.

    Raises:
      ApiError: 400 if one is wrong, or two have a name.
    """
    try:
        found = msgspec.convert(tools or [], list[Tool])
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        raise ApiError(f"tools{where.rstrip('`')}: {reason}", "tools") from None
    names = [one.function.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise ApiError(f"tools has {quote(name)} twice", "tools")
    return found


def call_schema(
    tools: list[Tool], choice: ToolChoice, *, is_parallel: bool
) -> dict[str, Any] | None:
    """Returns the JSON schema of an answer that has to be a call; None if it need not.

    Of a named function it is that of its parameters, else a list of objects with `name`
    and `parameters`.

    Raises:
      ApiError: 400 if there is no such tool.
    """
    if choice in ("none", "auto"):
        return None
    if isinstance(choice, NamedTool):
        name = choice.function.name
        for one in tools:
            if one.function.name == name:
                return one.function.parameters or {"type": "object"}
        known = ", ".join(one.function.name for one in tools) or "none"
        param = "tool_choice.function.name"
        raise ApiError(f"{param}={quote(name)} is not one of tools: {known}", param)
    if not tools:
        raise ApiError("tool_choice='required' needs tools", "tool_choice")
    calls, definitions = [], dict[str, Any]()
    for one in tools:
        parameters = dict(one.function.parameters or {"type": "object"})
        definitions |= parameters.pop("$defs", {})
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": one.function.name},
                    "parameters": parameters,
                },
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    schema = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    if not is_parallel:
        schema["maxItems"] = 1
    return schema | ({"$defs": definitions} if definitions else {})
