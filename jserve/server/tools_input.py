"""Tools of a chat, and what its answer has to be to call them."""

import collections
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from jserve.server.errors import ApiError, quote

_MAX_TOOLS = 512
FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Struct):
    """A function that the model may call."""

    name: FunctionName
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

    def to_turn(self, name: str) -> dict[str, Any]:
        """Returns the call as templates take it, whose arguments are an object.

        Raises:
          ApiError: 400 if the arguments are not JSON, naming their field.
        """
        try:
            arguments = msgspec.json.decode(self.function.arguments or "{}")
        except (msgspec.DecodeError, RecursionError) as error:
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
    if len(found) > _MAX_TOOLS:
        message = f"tools has {len(found)} of them; the limit is {_MAX_TOOLS}"
        raise ApiError(message, "tools")
    names = collections.Counter(one.function.name for one in found)
    [(name, count), *_] = names.most_common(1) or [("", 0)]
    if count > 1:
        raise ApiError(f"tools has {quote(name)} twice", "tools")
    return found


def _own_definitions(schema: Any, prefix: str) -> Any:
    """Returns a schema whose references to its definitions have a prefix."""
    if isinstance(schema, list):
        return [_own_definitions(one, prefix) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _own_definitions(one, prefix) for name, one in schema.items()}
    if isinstance(target := schema.get("$ref"), str):
        found["$ref"] = re.sub(
            r"^#/(\$defs|definitions)/", f"#/$defs/{prefix}.", target
        )
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
        name, given = one.function.name, one.function.parameters
        parameters = _own_definitions(given or {"type": "object"}, name)
        for key in ("$defs", "definitions"):
            for own, schema in parameters.pop(key, {}).items():
                definitions[f"{name}.{own}"] = schema
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": name},
                    "parameters": parameters,
                },
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    whole = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    if not is_parallel:
        whole["maxItems"] = 1
    return whole | ({"$defs": definitions} if definitions else {})
