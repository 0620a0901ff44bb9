"""The fields of OpenAI's requests that this server knows, and their limits.

The one idea: a field is known (declared here), refused (it would change the
answer; see refusals.py), or ignored.
"""

from typing import Any, TypeVar

import pydantic

from jserve.server.errors import ApiError, quote

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_CHARS = 256

Model = TypeVar("Model", bound=pydantic.BaseModel)


class StreamOptions(pydantic.BaseModel):
    """Options of a streamed answer."""

    model_config = pydantic.ConfigDict(strict=True, extra="allow")

    include_usage: bool | None = None


class GenerationRequest(pydantic.BaseModel):
    """What both endpoints take; None means the field's default."""

    model_config = pydantic.ConfigDict(strict=True, extra="allow")

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None
    slo: dict[str, Any] | None = None
    service_tier: str | None = None
    user: str | None = None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    # Any: prompts.py tells what is wrong with a prompt far better than a union.
    prompt: Any
    echo: bool | None = None
    best_of: int | None = None


class TextPart(pydantic.BaseModel):
    """One part of a turn whose content is a list; `type` other than text is refused."""

    model_config = pydantic.ConfigDict(strict=True, extra="allow")

    type: str
    text: str | None = None


class ChatMessage(pydantic.BaseModel):
    """One turn of a conversation."""

    model_config = pydantic.ConfigDict(strict=True, extra="allow")

    role: str
    content: str | list[TextPart] | None = None


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    add_generation_prompt: bool | None = None


def parse_body(model: type[Model], body: bytes) -> Model:
    """Returns the request that a body's JSON describes.

    Raises:
      ApiError: 400 if the body is not UTF-8, not JSON, or not such a request.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(
            400,
            f"the body is not UTF-8: byte {error.object[error.start]:#04x} at offset "
            f"{error.start}",
        ) from None
    try:
        return model.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise _explain(error) from None


def _explain(error: pydantic.ValidationError) -> ApiError:
    """Names the first fault; a client mends them one by one anyway."""
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['msg']}")
    path = ".".join(str(part) for part in first["loc"])
    if not path:
        return ApiError(400, "the body must be a JSON object")
    if first["type"] == "missing":
        return ApiError(400, f"{path} is missing", param=path)
    reason = first["msg"][:1].lower() + first["msg"][1:]
    return ApiError(400, f"{path}={quote(first['input'])}: {reason}", param=path)
