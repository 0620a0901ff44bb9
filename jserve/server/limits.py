"""Turns the numbers of a request into checked ones; each refusal names its limit."""

import secrets

from jserve.server.errors import ApiError, quote
from jserve.server.protocol import (
    MAX_CHOICES,
    MAX_STOP_CHARS,
    MAX_STOPS,
    GenerationRequest,
)
from jserve_sched.request import MAX_STOP_TOKENS, SamplingParams

_SEEDS = 2**32


def _check_range(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise ApiError(
            400, f"{name}={quote(value)} is not in {least}..{most}", param=name
        )
    return value


def num_choices(body: GenerationRequest, best_of: int | None) -> int:
    """Returns how many outputs each prompt gets.

    Raises:
      ApiError: 400 if `n` is out of range, or `best_of` asks for more than `n`.
    """
    count = 1 if body.n is None else _check_range("n", body.n, 1, MAX_CHOICES)
    if best_of is not None and best_of != count:
        raise ApiError(
            400,
            f"best_of={quote(best_of)} is not n={count}: ranking is not supported by "
            "this server",
            param="best_of",
            code="unsupported_parameter",
        )
    return count


def max_tokens(
    name: str,
    asked: int | None,
    *,
    default: int | None,
    num_prompt_tokens: int,
    context_tokens: int,
) -> int:
    """Returns the most output tokens of a request.

    Args:
      name: the field's name.
      asked: its value.
      default: when absent; None gives the rest of the context.
      num_prompt_tokens: tokens of the prompt.
      context_tokens: most tokens of prompt and output together.

    Raises:
      ApiError: 400 if prompt and output do not fit the context.
    """
    room = context_tokens - num_prompt_tokens
    if room < 1:
        raise ApiError(
            400,
            f"the prompt has {num_prompt_tokens} tokens; the context is "
            f"{context_tokens} tokens, prompt and at least 1 of output together",
            param="messages" if name == "max_completion_tokens" else "prompt",
            code="context_length_exceeded",
        )
    if asked is None:
        return room if default is None else min(default, room)
    if asked < 1:
        raise ApiError(400, f"{name}={quote(asked)} is below 1", param=name)
    if asked > room:
        raise ApiError(
            400,
            f"{name}={quote(asked)} is over {room}: the context is {context_tokens} "
            f"tokens and the prompt has {num_prompt_tokens}",
            param=name,
            code="context_length_exceeded",
        )
    return asked


def min_tokens(body: GenerationRequest, max_tokens: int) -> int:
    """Returns the fewest output tokens before an end of sequence may stop it."""
    if body.min_tokens is None:
        return 0
    return _check_range("min_tokens", body.min_tokens, 0, max_tokens)


def sampling(body: GenerationRequest) -> SamplingParams:
    """Returns how tokens are drawn; without a seed, from a fresh one.

    Raises:
      ApiError: 400 if a value is out of its range.
    """
    seed = secrets.randbelow(_SEEDS) if body.seed is None else body.seed % _SEEDS
    top_k = body.top_k if body.top_k is not None else 0
    try:
        return SamplingParams(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=_check_range("top_k", 0 if top_k == -1 else top_k, 0, 2**31 - 1),
            top_p=1.0 if body.top_p is None else body.top_p,
            min_p=0.0 if body.min_p is None else body.min_p,
            seed=seed,
        )
    except ValueError as error:
        raise ApiError(400, str(error), param=str(error).split("=")[0]) from None


def nth_seed(seed: int, index: int) -> int:
    """Returns the seed of output `index` of `n`."""
    return (seed + index) % _SEEDS


def stop_strings(body: GenerationRequest) -> tuple[str, ...]:
    """Returns the stop strings.

    Raises:
      ApiError: 400 if there are too many, or one is empty or too long.
    """
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > MAX_STOPS:
        raise ApiError(
            400,
            f"stop has {len(stops)} strings; the limit is {MAX_STOPS}",
            param="stop",
        )
    for stop in stops:
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise ApiError(
                400,
                f"stop has a string of {len(stop)} characters, which is not in "
                f"1..{MAX_STOP_CHARS}",
                param="stop",
            )
    return tuple(stops)


def stop_token_ids(
    body: GenerationRequest, *, eos_token_ids: frozenset[int], vocab_size: int
) -> frozenset[int]:
    """Returns the tokens that end an output: those asked for, and the model's own.

    Raises:
      ApiError: 400 if there are too many, or one is not in the vocabulary.
    """
    asked = frozenset(body.stop_token_ids or ())
    own = frozenset() if body.ignore_eos else eos_token_ids
    if len(asked | own) > MAX_STOP_TOKENS:
        raise ApiError(
            400,
            f"stop_token_ids has {len(asked)} ids, {len(asked | own)} with the model's "
            f"own end-of-sequence tokens; the limit is {MAX_STOP_TOKENS}",
            param="stop_token_ids",
        )
    for token in asked:
        _check_range("stop_token_ids", token, 0, vocab_size - 1)
    return asked | own
