"""From what a client sent to the token ids of each prompt, all checked."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jserve.chat_template import Message
from jserve.server.errors import ApiError, quote
from jserve.server.protocol import ChatMessage
from jserve.server.refusals import FieldFilter
from jserve.tokenizer import Tokenizer

# Longer texts are encoded in a thread: the loop would stand still meanwhile.
_LONG_TEXT_CHARS = 20_000
_ROLES = ("system", "developer", "user", "assistant")
_FORMS = (
    "prompt must be a string, a list of strings, a list of token ids, "
    "or a list of such lists"
)


def _is_token_list(value: Any) -> bool:
    # set(map(type)) runs in C, and keeps out True and False, which are ints too.
    return isinstance(value, list) and set(map(type, value)) <= {int}


def split_prompts(prompt: Any) -> list[str | list[int]]:
    """Returns the prompts of a completion request, one output each.

    Raises:
      ApiError: 400 if `prompt` has none of the four forms, or an empty part.
    """
    prompts: list[Any]
    if isinstance(prompt, str) or (prompt and _is_token_list(prompt)):
        prompts = [prompt]
    elif isinstance(prompt, list) and (
        all(isinstance(one, str) for one in prompt) or all(map(_is_token_list, prompt))
    ):
        prompts = prompt
    else:
        raise ApiError(400, _FORMS, param="prompt")
    if not prompts or not all(prompts):
        raise ApiError(
            400, "prompt is empty; it needs at least 1 token", param="prompt"
        )
    return prompts


async def _run(size_chars: int, encode: Callable[[], list[int]]) -> list[int]:
    return (
        await asyncio.to_thread(encode) if size_chars > _LONG_TEXT_CHARS else encode()
    )


async def encode_prompt(
    tokenizer: Tokenizer, prompt: str | list[int], *, vocab_size: int
) -> np.ndarray:
    """Returns a prompt's token ids, `[n]` int32.

    Raises:
      ApiError: 400 if an id is not in the vocabulary.
    """
    if isinstance(prompt, str):
        text = prompt
        tokens = await _run(len(text), lambda: tokenizer.encode(text))
    else:
        tokens = prompt
    return _check_tokens(tokens, vocab_size=vocab_size)


def _check_tokens(tokens: Sequence[int], *, vocab_size: int) -> np.ndarray:
    if not tokens:
        raise ApiError(
            400, "prompt is empty; it needs at least 1 token", param="prompt"
        )
    for token in (min(tokens), max(tokens)):
        if not 0 <= token < vocab_size:
            raise ApiError(
                400,
                f"prompt has the token id {quote(token)}, which is not in "
                f"0..{vocab_size - 1}, the vocabulary",
                param="prompt",
            )
    return np.asarray(tokens, np.int32)


def _message(message: ChatMessage, index: int, fields: FieldFilter) -> Message:
    where = f"messages.{index}"
    if message.role not in _ROLES:
        raise ApiError(
            400,
            f"{where}.role={quote(message.role)} is not one of {', '.join(_ROLES)}",
            param=f"{where}.role",
        )
    if (message.model_extra or {}).get("tool_calls"):
        raise ApiError(
            400,
            f"{where}.tool_calls is not supported by this server",
            param=f"{where}.tool_calls",
            code="unsupported_parameter",
        )
    fields.check(message.model_extra, where="messages.")
    if message.content is None:
        raise ApiError(400, f"{where}.content is missing", param=f"{where}.content")
    if isinstance(message.content, str):
        text = message.content
    else:
        texts = []
        for number, part in enumerate(message.content):
            if part.type != "text" or part.text is None:
                raise ApiError(
                    400,
                    f"{where}.content.{number}.type={quote(part.type)} is not "
                    "supported; this server takes parts of type 'text'",
                    param=f"{where}.content",
                    code="unsupported_parameter",
                )
            texts.append(part.text)
        text = "\n".join(texts)
    # A developer's words are the system prompt's younger name.
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": text}


async def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    *,
    add_generation_prompt: bool,
    vocab_size: int,
    fields: FieldFilter,
) -> np.ndarray:
    """Returns a conversation's token ids, `[n]` int32.

    Raises:
      ApiError: 400 if a turn is not supported, or the template refuses it.
    """
    if not messages:
        raise ApiError(400, "messages is empty; it needs at least 1", param="messages")
    if not tokenizer.has_chat_template:
        raise ApiError(
            400, "this model has no chat template; use /v1/completions", param="model"
        )
    turns = [_message(one, index, fields) for index, one in enumerate(messages)]
    try:
        tokens = await _run(
            sum(len(turn["content"]) for turn in turns),
            lambda: tokenizer.apply_chat_template(
                turns, add_generation_prompt=add_generation_prompt
            ),
        )
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from None
    return _check_tokens(tokens, vocab_size=vocab_size)
