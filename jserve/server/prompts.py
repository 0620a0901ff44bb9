"""Turns a client's prompts or messages into checked token ids."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jserve.server.errors import ApiError, quote
from jserve.text.chat_template import Message
from jserve.text.tokenizer import Tokenizer

# Longer texts are encoded in a thread, so that they do not block the event loop.
_LONG_TEXT_CHARS = 20_000
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
      ApiError: 400 if `prompt` has none of the four forms, or a part is empty.
    """
    prompts: list[Any]
    if isinstance(prompt, str) or (prompt and _is_token_list(prompt)):
        prompts = [prompt]
    elif isinstance(prompt, list) and (
        all(isinstance(one, str) for one in prompt) or all(map(_is_token_list, prompt))
    ):
        prompts = prompt
    else:
        raise ApiError(_FORMS, "prompt")
    if not prompts or not all(prompts):
        raise _empty()
    return prompts


def _empty() -> ApiError:
    return ApiError("prompt is empty; it needs at least 1 token", "prompt")


async def _run(size_chars: int, encode: Callable[[], list[int]]) -> list[int]:
    is_long = size_chars > _LONG_TEXT_CHARS
    return await asyncio.to_thread(encode) if is_long else encode()


async def encode_prompt(tokenizer: Tokenizer, prompt: str | list[int]) -> list[int]:
    """Returns a prompt's token ids; those given as a list are not checked."""
    if isinstance(prompt, str):
        return await _run(len(prompt), lambda: tokenizer.encode(prompt))
    return prompt


async def encode_chat(
    tokenizer: Tokenizer, turns: Sequence[Message], *, add_generation_prompt: bool
) -> list[int]:
    """Returns a conversation's token ids.

    Raises:
      ApiError: 400 if there is no template, or it refuses the conversation.
    """
    try:
        return await _run(
            sum(len(turn["content"]) for turn in turns),
            lambda: tokenizer.apply_chat_template(
                turns, add_generation_prompt=add_generation_prompt
            ),
        )
    except ValueError as error:
        raise ApiError(str(error), "messages") from None


def check_tokens(tokens: Sequence[int], vocab_size: int) -> np.ndarray:
    """Returns token ids as an array, `[n]` int32.

    Raises:
      ApiError: 400 if there are no tokens, or one is not in the vocabulary.
    """
    if not tokens:
        raise _empty()
    for token in (min(tokens), max(tokens)):
        if not 0 <= token < vocab_size:
            message = f"prompt has the token id {quote(token)}, which is not in "
            raise ApiError(f"{message}0..{vocab_size - 1}, the vocabulary", "prompt")
    return np.asarray(tokens, np.int32)
