"""What an answer has to be, from the fields of a body, in OpenAI's and vLLM's words."""

from typing import Any, get_args

from msgspec import UNSET

from jserve.server.chat_request import ChatRequest
from jserve.server.errors import ApiError
from jserve.server.protocol import GenerationRequest
from jserve.text.constraints import Kind

_ANY_OBJECT = {"type": "object"}


def asked_constraint(body: GenerationRequest) -> tuple[Kind, Any, str] | None:
    """Returns the kind and value of the constraint, and its field; None without one.

    Raises:
      ApiError: 400 if there are several, or a schema is missing.
    """
    found: list[tuple[Kind, Any, str]] = []
    if (form := body.response_format) is not None and form.type != "text":
        schema: Any = _ANY_OBJECT
        if form.type == "json_schema":
            if form.json_schema is None or form.json_schema.schema is UNSET:
                name = "response_format.json_schema.schema"
                raise ApiError(f"{name} is missing", name)
            schema = form.json_schema.schema
        found.append(("json", schema, "response_format"))
    if (asked := body.structured_outputs) is not None:
        for kind in get_args(Kind):
            if (value := getattr(asked, kind)) is not None:
                found.append((kind, value, f"structured_outputs.{kind}"))
        if asked.json_object:
            found.append(("json", _ANY_OBJECT, "structured_outputs.json_object"))
    for kind in get_args(Kind):
        if (value := getattr(body, f"guided_{kind}")) is not None:
            found.append((kind, value, f"guided_{kind}"))
    if isinstance(body, ChatRequest) and (schema := body.call_schema) is not None:
        found.append(("json", schema, "tool_choice"))
    if not found:
        return None
    name = found[-1][2]
    if len(found) > 1:
        message = f"{name} and {found[0][2]} exclude each other"
        raise ApiError(message, name)
    if body.min_tokens:
        message = f"min_tokens={body.min_tokens} cannot be kept with {name}, which may "
        raise ApiError(message + "end an answer earlier", "min_tokens")
    return found[0]
