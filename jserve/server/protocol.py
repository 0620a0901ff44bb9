"""OpenAI's requests as this server accepts them: fields, limits and refusals.

A field is known (declared here), refused (it would change the answer), or ignored and
logged once. Clients send many unsupported fields with values that change nothing; these
are accepted.
"""

import logging
import secrets
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from jserve.server.errors import ApiError, quote, validation_error
from jserve.server.slo_input import SloFields
from jserve.text.chat_template import Message
from jserve_sched.requests.request import SamplingParams

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_CHARS = 256
SEEDS = 2**32
_MAX_LOGGED = 1000
_MAX_NAME_CHARS = 80

_HARMLESS: tuple[Any, ...] = (False, [], {}, "")
# Fields that are not supported, and the values, besides None, that change nothing.
# Fields that only one endpoint declares are refused by the other.
_REFUSED: dict[str, tuple[Any, ...]] = dict.fromkeys(
    """
    allowed_token_ids audio bad_words chat_template chat_template_kwargs documents
    continue_final_message ebnf echo functions guided_choice guided_grammar guided_regex
    logit_bias logits_processors logprobs max_completion_tokens
    prompt_embeds prompt_logprobs regex structured_outputs suffix tool_calls tools
    truncate_prompt_tokens use_beam_search web_search_options
    """.split(),  # noqa: SIM905
    _HARMLESS,
) | {
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "guided_json": (),  # {} asks for JSON
    "json_schema": (),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "tool_choice": ("none", "auto"),
    "top_logprobs": (0,),
}
_logged: set[str] = set()

Model = TypeVar("Model", bound=pydantic.BaseModel)


class _Fields(pydantic.BaseModel):
    """An object whose undeclared fields are refused or ignored."""

    model_config = pydantic.ConfigDict(strict=True, extra="allow")

    where: ClassVar[str] = ""  # path of the object in a body, with a dot at its end

    @pydantic.model_validator(mode="after")
    def _refuse_or_ignore(self) -> "_Fields":
        for name, value in (self.model_extra or {}).items():
            path = self.where + name[:_MAX_NAME_CHARS]
            harmless = _REFUSED.get(name)
            if harmless is None:
                _log_ignored(path)
            elif value is not None and not _is_among(harmless, value):
                raise ApiError(
                    f"{path}={quote(value)} is not supported by this server",
                    path,
                    code="unsupported_parameter",
                )
        return self


def _is_among(values: tuple[Any, ...], value: Any) -> bool:
    # 0 is not False: a completion's `logprobs: 0` asks for one value per token.
    return any(
        value == one and isinstance(value, bool) == isinstance(one, bool)
        for one in values
    )


def _log_ignored(name: str) -> None:
    if name not in _logged and len(_logged) < _MAX_LOGGED:
        _logged.add(name)
        logging.getLogger(__name__).warning("ignored the unknown field %r", name)


class StreamOptions(_Fields):
    """Options of a streamed answer."""

    where = "stream_options."

    include_usage: bool | None = None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
_Stops = Annotated[
    list[_Stop], pydantic.BeforeValidator(_as_list), Field(max_length=MAX_STOPS)
]


class GenerationRequest(_Fields):
    """Fields of both endpoints; None means the field's default."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    best_of: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = None
    seed: int | None = None
    stop: _Stops | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None
    slo: SloFields | None = None
    service_tier: str | None = None
    user: str | None = None

    def sampling(self) -> SamplingParams:
        """Returns the sampling parameters of the first output.

        Without a seed, one is drawn at random.

        Raises:
          ApiError: 400 if a value is out of its range.
        """
        seed = secrets.randbelow(SEEDS) if self.seed is None else self.seed % SEEDS
        try:
            return SamplingParams(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_k=max(self.top_k or 0, 0),
                top_p=1.0 if self.top_p is None else self.top_p,
                min_p=self.min_p or 0.0,
                seed=seed,
            )
        except ValueError as error:
            raise ApiError(str(error), str(error).split("=")[0]) from None

    @pydantic.model_validator(mode="after")
    def _check_together(self) -> "GenerationRequest":
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ApiError(
                f"best_of={quote(self.best_of)} is not n={self.n or 1}: ranking is not "
                "supported by this server",
                "best_of",
                code="unsupported_parameter",
            )
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                "stream_options is for streams; set stream=true", "stream_options"
            )
        return self


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    # Any, since prompts.py gives better messages than pydantic for a union.
    prompt: Any
    echo: bool | None = None


class TextPart(pydantic.BaseModel):
    """One part of a turn's content."""

    model_config = pydantic.ConfigDict(strict=True, extra="ignore")

    type: Literal["text"]
    text: str


def _as_parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if isinstance(value, list):
        return value
    raise PydanticCustomError("content", "Input should be a string or a list of parts")


class ChatMessage(_Fields):
    """One turn of a conversation."""

    where = "messages."

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], pydantic.BeforeValidator(_as_parts)]

    def to_turn(self) -> Message:
        """Returns the turn as a template takes it."""
        # "developer" is OpenAI's newer name of "system".
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "\n".join(one.text for one in self.content)}


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    add_generation_prompt: bool | None = None


def parse_body(model: type[Model], body: bytes) -> Model:
    """Returns the request that a body's JSON describes.

    Raises:
      ApiError: 400 if the body is not UTF-8, not JSON, or not such a request.
    """
    try:
        return model.model_validate_json(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ApiError(
            f"the body is not UTF-8: byte {error.object[error.start]:#04x} at offset "
            f"{error.start}"
        ) from None
    except pydantic.ValidationError as error:
        raise _first_fault(error) from None


def _first_fault(error: pydantic.ValidationError) -> ApiError:
    """Returns the refusal for the first of the errors."""
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(f"the body is not JSON: {first['msg']}")
    path = ".".join(str(part) for part in first["loc"])
    if not path:
        return ApiError("the body must be a JSON object")
    if first["type"] == "missing":
        return ApiError(f"{path} is missing", path)
    if first["type"] == "extra_forbidden":
        known = ", ".join(SloFields.model_fields)
        return ApiError(f"{path} is unknown; known: {known}", path)
    return validation_error(first, path)
