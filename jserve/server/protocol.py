"""OpenAI's requests as this server accepts them: fields, limits and refusals.

A field is known (declared here), refused (it would change the answer), or ignored and
logged once. Clients send many unsupported fields with values that change nothing; these
are accepted. Only known fields become objects, and decoding ends at the first of them
that is wrong.
"""

import logging
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from jserve.server.errors import ApiError, quote
from jserve.server.slo_input import MAX_PRIORITY, Nvext, SloFields
from jserve_sched.requests.request import MAX_LOGPROBS

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_FIELDS = 512  # of a body, unknown ones included, and of stop_token_ids
_MAX_LOGGED = 1000
_MAX_NAME_CHARS = 80
_MAX_SHOWN = 8  # names of ignored fields, in a header that every proxy takes
_MAX_SHOWN_CHARS = 40
_MAX_QUOTED_BYTES = 400  # longer values are quoted as they were sent, and cut

_HARMLESS: tuple[Any, ...] = (False, [], {}, "")
# Fields that are not supported, and the values, besides None, that change nothing.
# Fields that only one endpoint declares are refused by the other.
_REFUSED: dict[str, tuple[Any, ...]] = dict.fromkeys(
    """
    audio chat_template chat_template_kwargs documents
    continue_final_message ebnf echo functions logits_processors max_completion_tokens
    prompt_embeds regex suffix tools use_beam_search
    web_search_options
    """.split(),  # noqa: SIM905
    _HARMLESS,
) | {
    "function_call": ("none", "auto"),
    "json_schema": (),  # {} asks for JSON
    "tool_choice": ("none", "auto"),
    "modalities": (["text"],),
    "top_logprobs": (0,),
}
_logged: set[str] = set()

Bytes: TypeAlias = bytes | bytearray | memoryview
Model = TypeVar("Model", bound="GenerationRequest")


def _is_among(values: tuple[Any, ...], value: Any) -> bool:
    # 0 is not False: a completion's `logprobs: 0` asks for one value per token.
    return any(
        value == one and isinstance(value, bool) == isinstance(one, bool)
        for one in values
    )


def _value(raw: Raw) -> Any:
    """Returns a client's value; of a long one only the JSON of its beginning."""
    data = bytes(raw)
    if len(data) > _MAX_QUOTED_BYTES:
        return data[:_MAX_QUOTED_BYTES].decode(errors="replace")
    return msgspec.json.decode(data)


def refuse_unsupported(
    name: str, raw: Raw, path: str, harmless: tuple[Any, ...] | None = None
) -> None:
    """Refuses an unsupported field whose value would change the answer."""
    value = _value(raw)
    harmless = _REFUSED[name] if harmless is None else harmless
    if value is not None and not _is_among(harmless, value):
        raise ApiError(
            f"{path}={quote(value)} is not supported by this server",
            path,
            code="unsupported_parameter",
        )


def log_ignored(names: tuple[str, ...]) -> None:
    """Logs each name of an ignored field once."""
    for name in names:
        if name not in _logged and len(_logged) < _MAX_LOGGED:
            _logged.add(name)
            logging.getLogger(__name__).warning("ignored the unknown field %r", name)


def names_header(names: Sequence[str]) -> str:
    """Returns the first names of ignored fields, cut, as the value of a header."""
    shown = [ascii(name)[1:-1][:_MAX_SHOWN_CHARS] for name in sorted(names)]
    return ", ".join(shown[:_MAX_SHOWN] + ["..."] * (len(shown) > _MAX_SHOWN))


class StreamOptions(Struct):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Name = Annotated[str, Meta(max_length=4096)]
_Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)] | None
Logprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None
_Priority = Annotated[int, Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """What an answer has to be, in vLLM's words; one of the fields."""

    json: str | dict[str, Any] | bool | None = None
    regex: _Text | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=MAX_FIELDS)] | None = (
        None
    )
    grammar: _Text | None = None
    json_object: bool | None = None


class JsonSchema(Struct):
    """A schema in OpenAI's `response_format`."""

    schema: dict[str, Any] | bool | UnsetType = UNSET


class ResponseFormat(Struct):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class GenerationRequest(Struct, kw_only=True):
    """Fields of all endpoints that generate; None means the field's default.

    Attributes:
      refused: Fields that this endpoint refuses, as in `_REFUSED`.
      renamed: Names in this endpoint of fields that errors may name.
      ignored: Names of the fields that are unknown.
      priority: Tier: those with a lower number begin first.
    """

    content: ClassVar[str]  # the field that holds what the model reads
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {}
    renamed: ClassVar[dict[str, str]] = {}

    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    best_of: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=2**31)] | None = None
    min_p: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: Annotated[list[int], Meta(min_length=1)] | None = None
    bad_words: Annotated[list[Stop], Meta(max_length=MAX_FIELDS)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[int], Meta(max_length=MAX_FIELDS)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None
    skip_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | bool | None = None
    guided_regex: _Text | None = None
    guided_choice: Annotated[list[str], Meta(min_length=1)] | None = None
    guided_grammar: _Text | None = None
    slo: SloFields | None = None
    nvext: Nvext | None = None
    service_tier: Name | None = None
    priority: _Priority | None = None
    prompt_logprobs: Logprobs = None
    user: Name | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def check_together(self) -> None:
        """Refuses fields that contradict each other.

        Raises:
          ApiError: 400, naming one of them.
        """
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


class CompletionRequest(GenerationRequest, kw_only=True):
    """POST /v1/completions."""

    content = "prompt"

    prompt: str | list[int | str | list[int]]
    echo: bool | None = None
    logprobs: Logprobs = None


def parse_body(model: type[Model], body: Bytes) -> tuple[Model, tuple[str, ...]]:
    """Returns the request that a body's JSON describes, and names of unknown fields.

    Raises:
      ApiError: 400 if the body is not UTF-8, not JSON, or not such a request.
    """
    try:
        str(body, "utf-8")  # fields that are skipped are not checked otherwise
        asked = msgspec.json.decode(body, type=model)
        ignored = _unknown(model, Raw(body))
    except UnicodeDecodeError as error:
        raise ApiError(
            f"the body is not UTF-8: byte {error.object[error.start]:#04x} at offset "
            f"{error.start}"
        ) from None
    except RecursionError:
        raise ApiError("the body is not JSON: it is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise _fault(error, body, model) from None
    except msgspec.DecodeError as error:
        raise ApiError(f"the body is not JSON: {error}") from None
    asked.check_together()
    return asked, ignored


def _unknown(model: type[Struct], raw: Raw, where: str = "") -> tuple[str, ...]:
    """Returns the unknown fields of an object; refuses those that are unsupported."""
    fields = msgspec.json.decode(raw, type=dict[str, Raw])
    if len(fields) > MAX_FIELDS:
        message = f"the body has {len(fields)} fields; the limit is {MAX_FIELDS}"
        raise ApiError(message)
    own = getattr(model, "refused", {})
    refused = _REFUSED | own
    ignored: tuple[str, ...] = ()
    for name in fields.keys() - ({*model.__struct_fields__} - own.keys()):
        path = where + name[:_MAX_NAME_CHARS]
        if name in refused:
            refuse_unsupported(name, fields[name], path, refused[name])
        else:
            ignored += (path,)
    if bytes(options := fields.get("stream_options", Raw(b"null"))) != b"null":
        ignored += _unknown(StreamOptions, options, "stream_options.")
    return ignored


_CLOSED: dict[str, type[Struct]] = {"structured_outputs": StructuredOutputs}
_NOUNS = {
    "`str`": "a string",
    "`int`": "an integer",
    "`float`": "a number",
    "`bool`": "true or false",
    "`array`": "a list",
    "`object`": "an object",
    "`null`": "null",
}


def _fault(
    error: msgspec.ValidationError,
    body: Bytes,
    model: type[GenerationRequest],
) -> ApiError:
    """Returns the refusal for the first field that is wrong."""
    reason, has_path, where = str(error).rpartition(" - at `$")
    reason, where = (reason, where) if has_path else (where, "")
    steps = re.findall(r"\w+", where)
    if match := re.fullmatch("(?s)Object (missing|contains).* field `(.*)`", reason):
        path = ".".join([*steps, match[2][:_MAX_NAME_CHARS]])
        fields = _CLOSED.get(path.partition(".")[0], SloFields).__struct_fields__
        is_missing = match[1] == "missing"
        message = (
            "is missing" if is_missing else f"is unknown; known: {', '.join(fields)}"
        )
        return ApiError(f"{path} {message}", path)
    if not steps:
        return ApiError("the body must be a JSON object")
    if steps[0] == "prompt":
        return ApiError(PROMPT_FORMS, "prompt")
    raw = Raw(body)
    for step in steps:
        if step.isdigit():
            raw = msgspec.json.decode(raw, type=list[Raw])[int(step)]
        else:
            raw = msgspec.json.decode(raw, type=dict[str, Raw])[step]
    path = ".".join(steps)
    # "Expected `str | array`, got `int`" becomes "expected a string or a list".
    reason = reason[:1].lower() + reason[1:].partition(", got")[0]
    reason = reason.replace(" | null", "").replace(" | ", "` or `")
    for name, noun in _NOUNS.items():
        reason = reason.replace(name, noun)
    return ApiError(f"{path}={quote(_value(raw))}: {reason}", path)


PROMPT_FORMS = (
    "prompt must be a string, a list of strings, a list of token ids, "
    "or a list of such lists"
)
