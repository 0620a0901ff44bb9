"""Reads a request's body: from bytes to checked fields and token ids.

It is the only work on a request whose time grows with what a client sends, so it is a
pure function of the body, which can run in another process (`workers.py`).
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jserve.server.chat_request import ChatRequest
from jserve.server.errors import ApiError, quote
from jserve.server.protocol import (
    PROMPT_FORMS,
    Bytes,
    CompletionRequest,
    GenerationRequest,
    parse_body,
)
from jserve.server.tools_input import read_tools
from jserve.server.translated import TranslatedRequest
from jserve.text.tokenizer import Tokenizer
from jserve_sched.requests.limits import RequestLimits, TooLongError

_DEFAULT_COMPLETION_TOKENS = 16  # as in OpenAI's API
_LONG_TOKEN_CHARS = 8  # an honest text has fewer characters a token
_PIECE_CHARS = 2**14
_PIECE_SLACK_TOKENS = 64  # that a piece may have more than its part of the text
_MAX_MEMBERS = 64  # of a compressed body; each costs a copy of what follows it
_ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's window bits


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt's token ids, the most output tokens, and the text echoed before them."""

    tokens: np.ndarray
    max_tokens: int
    echo: str = ""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a body asks for: its fields, its prompts, and the names that are unknown.

    `door` is the path under /v1, and `echoed` what the answer repeats of the body.
    """

    body: GenerationRequest
    prompts: list[Prompt]
    ignored: tuple[str, ...]
    door: str
    echoed: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BodyReader:
    """Reads bodies for one model, whose tokenizer comes with each.

    Attributes:
      model_names: Names by which clients may call the model, the main one first.
      limits: Sizes that a single request may have.
      max_requests: Most outputs of a body.
      max_body_bytes: Largest body, once it is decompressed.
    """

    model_names: tuple[str, ...]
    vocab_size: int
    limits: RequestLimits
    max_requests: int
    max_body_bytes: int

    def read(
        self,
        tokenizer: Tokenizer,
        model: type[GenerationRequest],
        data: Bytes,
        encoding: str = "",
    ) -> Asked:
        """Returns what a body asks for.

        Args:
          model: The endpoint's request.
          encoding: Content-Encoding of `data`, "" for none.

        Raises:
          ApiError: If the request is refused.
        """
        if encoding:
            data = self._decompress(data, encoding)
        body, ignored = parse_body(model, data)
        if body.model is not None:
            self.check_model(body.model)
        door, echoed = "chat", dict[str, Any]()
        if isinstance(body, TranslatedRequest):
            door, echoed, body = body.door, body.echoed(), body.chat()
        if isinstance(body, ChatRequest):
            prompts = [self._chat(tokenizer, body)]
            body.messages = []  # nobody needs them any more
        else:
            assert isinstance(body, CompletionRequest)
            prompts = self._completion(tokenizer, body)
            body.prompt = []
            door = "completions"
        return Asked(body, prompts, ignored, door, echoed)

    def check_model(self, name: str) -> None:
        """Checks the name of a model.

        Raises:
          ApiError: 404 unless it is a name of the served model.
        """
        if name not in self.model_names:
            message = f"the model {quote(name)} does not exist; this server has "
            message += repr(self.model_names[0])
            raise ApiError(message, "model", status=404, code="model_not_found")

    def _decompress(self, data: Bytes, encoding: str) -> bytearray:
        bits = _ENCODINGS.get(encoding)
        if bits is None:
            message = f"content-encoding={quote(encoding)} is not one of "
            error = ApiError(message + ", ".join(_ENCODINGS), status=415)
            error.headers["Accept-Encoding"] = "gzip, deflate"
            raise error
        body = bytearray()
        for _ in range(_MAX_MEMBERS):  # that may follow each other
            stream = zlib.decompressobj(bits)
            try:
                body += stream.decompress(data, self.max_body_bytes + 1 - len(body))
            except zlib.error as error:
                raise ApiError(f"the body is not {encoding}: {error}") from None
            if len(body) > self.max_body_bytes:
                raise too_large(len(body), self.max_body_bytes)
            if not stream.eof:
                raise ApiError(f"the body is not {encoding}: it ends too early")
            data = stream.unused_data
            if not data:
                return body
        raise ApiError(f"the body has over {_MAX_MEMBERS} members of {encoding}")

    def _chat(self, tokenizer: Tokenizer, body: ChatRequest) -> Prompt:
        turns = [
            one.to_turn(f"messages.{index}") for index, one in enumerate(body.messages)
        ]
        self._check_requests(body, 1)
        tools = body.tools if body.has_tools else None
        read_tools(tools)
        text = "\n".join(one["content"] for one in turns) + str(tools or "")
        self._check_text(tokenizer, text, body, len(turns))
        try:
            tokens = tokenizer.apply_chat_template(
                turns,
                add_generation_prompt=body.has_generation_prompt,
                continue_final_message=bool(body.continue_final_message),
                documents=body.documents or None,
                tools=tools,
                name=body.chat_template or None,
            )
        except ValueError as error:
            is_name = str(error).startswith("chat_template=")
            param = "chat_template" if is_name else "messages"
            raise ApiError(str(error), param) from None
        return self._prompt(tokens, body)

    def _completion(
        self, tokenizer: Tokenizer, body: CompletionRequest
    ) -> list[Prompt]:
        given = split_prompts(body.prompt)
        self._check_requests(body, len(given))
        prompts = []
        for one in given:
            if isinstance(one, str):
                self._check_text(tokenizer, one, body)
                prompt = self._prompt(tokenizer.encode(one), body)
                echo = one
            else:
                prompt = self._prompt(one, body)
                echo = tokenizer.decode(one) if body.echo else ""
            prompts.append(dataclasses.replace(prompt, echo=echo if body.echo else ""))
        return prompts

    def _check_requests(self, body: GenerationRequest, num_prompts: int) -> None:
        num_choices = body.n or 1
        num_requests = num_choices * num_prompts
        if num_requests > self.max_requests:
            message = f"{num_prompts} prompts with n={num_choices} are {num_requests} "
            message += f"requests; the limit is max_queued_requests={self.max_requests}"
            raise ApiError(message, "n" if num_choices > 1 else "prompt")

    def _check_text(
        self, tokenizer: Tokenizer, text: str, body: GenerationRequest, least: int = 0
    ) -> None:
        """Refuses a text that is too long by its characters, or by a part of it.

        Args:
          least: Fewest tokens that it may have, such as one of each turn of a chat.
        """
        if body.truncate_prompt_tokens is not None:
            return
        limit = self.limits.context_tokens
        num_tokens = max(len(text) // tokenizer.longest_token_chars, least)
        if num_tokens <= limit and len(text) > _LONG_TOKEN_CHARS * limit:
            num_tokens = 0
            for start in range(0, len(text), _PIECE_CHARS):
                piece = tokenizer.encode(text[start : start + _PIECE_CHARS])
                num_tokens += max(len(piece) - _PIECE_SLACK_TOKENS, 0)
                if num_tokens > limit:
                    break
        if num_tokens > limit:
            raise ApiError(
                f"{body.content} has {len(text)} characters, which are {num_tokens} "
                f"tokens or more; the context is {limit} tokens",
                body.content,
                code="context_length_exceeded",
            )

    def _prompt(self, tokens: Sequence[int], body: GenerationRequest) -> Prompt:
        """Returns a prompt of token ids, and the most output tokens after it.

        Raises:
          ApiError: 400 if there are no tokens, too many, or one that is unknown.
        """
        if not tokens:
            raise _empty()
        if (kept := body.truncate_prompt_tokens) is not None:
            # The last ones; -1 keeps as many as there is room for.
            if not kept:
                name = "truncate_prompt_tokens"
                raise ApiError(f"{name}=0 is neither -1 nor above 0", name)
            tokens = tokens[-(kept if kept > 0 else self.limits.context_tokens - 1) :]
        room = self.limits.context_tokens - len(tokens)
        name, number = "max_tokens", body.max_tokens
        default = min(_DEFAULT_COMPLETION_TOKENS, room)
        if isinstance(body, ChatRequest):
            default = room
            if body.max_completion_tokens is not None:
                name, number = "max_completion_tokens", body.max_completion_tokens
        max_tokens = default if number is None else number
        try:
            self.limits.check(len(tokens), max_tokens, name)
        except TooLongError as error:
            param = body.content if room < 1 else name
            code = "context_length_exceeded"
            raise ApiError(str(error), param, code=code) from None
        for token in (min(tokens), max(tokens)):
            if not 0 <= token < self.vocab_size:
                message = f"prompt has the token id {quote(token)}, which is not in "
                message += f"0..{self.vocab_size - 1}, the vocabulary"
                raise ApiError(message, "prompt")
        return Prompt(np.asarray(tokens, np.int32), max_tokens)


def too_large(num_bytes: int, max_body_bytes: int) -> ApiError:
    """Returns the refusal of a body over the limit."""
    return ApiError(
        f"the body has {num_bytes} bytes or more; the limit is {max_body_bytes} bytes "
        "(--max_body_bytes)",
        status=413,
        code="body_too_large",
    )


def _empty() -> ApiError:
    return ApiError("prompt is empty; it needs at least 1 token", "prompt")


def split_prompts(prompt: Any) -> list[str | list[int]]:
    """Returns the prompts of a completion request, one output each.

    Raises:
      ApiError: 400 if `prompt` has none of the four forms, or a part is empty.
    """
    prompts = [prompt] if isinstance(prompt, str) or not prompt else prompt
    kinds = set(map(type, prompts))  # in C
    if kinds == {int}:
        prompts = [prompts]
    elif kinds == {list}:
        if any(set(map(type, one)) - {int} for one in prompts):
            raise ApiError(PROMPT_FORMS, "prompt")
    elif kinds != {str}:
        raise ApiError(PROMPT_FORMS, "prompt")
    if not all(prompts):
        raise _empty()
    return prompts
