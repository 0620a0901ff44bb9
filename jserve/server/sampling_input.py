"""How the tokens of a request are drawn, from the fields of its body."""

import secrets
from collections.abc import Iterator
from typing import Any

from jserve.server.chat_request import ChatRequest
from jserve.server.errors import ApiError, quote
from jserve.server.protocol import CompletionRequest, GenerationRequest
from jserve.text.folder_settings import SAMPLING_FIELDS
from jserve.text.tokenizer import Tokenizer
from jserve_sched.requests.request import (
    MAX_BAD_WORDS,
    MAX_BIASES,
    MAX_WORD_TOKENS,
    SamplingParams,
)

SEEDS = 2**32
_MAX_BIAS = 100.0


def sampling_params(
    body: GenerationRequest, tokenizer: Tokenizer, vocab_size: int
) -> SamplingParams:
    """Returns the sampling parameters of the first output.

    What the request does not name is the model's. Without a seed, one is drawn at
    random.

    Raises:
      ApiError: 400 if a value is out of its range.
    """
    seed = secrets.randbelow(SEEDS) if body.seed is None else body.seed % SEEDS
    biases = _biases(body, vocab_size)
    values: dict[str, Any] = {"temperature": 1.0, **tokenizer.sampling}
    for name in SAMPLING_FIELDS:
        if (value := getattr(body, name)) is not None:
            values[name] = value
    own = _num_logprobs(body)
    values["top_k"] = max(values.get("top_k", 0), 0)
    try:
        return SamplingParams(
            **values,
            seed=seed,
            frequency_penalty=body.frequency_penalty or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
            biases=biases,
            only_biased=body.allowed_token_ids is not None,
            bad_words=tuple(_bad_words(body, tokenizer)),
            num_logprobs=own if own is not None else body.prompt_logprobs,
        )
    except ValueError as error:
        raise ApiError(str(error), str(error).split("=")[0]) from None


def _num_logprobs(body: GenerationRequest) -> int | None:
    if isinstance(body, ChatRequest):
        if body.top_logprobs and not body.logprobs:
            message = f"top_logprobs={body.top_logprobs} needs logprobs=true"
            raise ApiError(message, "top_logprobs")
        return (body.top_logprobs or 0) if body.logprobs else None
    assert isinstance(body, CompletionRequest)
    return body.logprobs


def scores_prompt(body: GenerationRequest) -> bool:
    """Returns whether log-probabilities of the prompt's own tokens are wanted.

    Raises:
      ApiError: 400 if another field excludes it.
    """
    name, num_own = "prompt_logprobs", _num_logprobs(body)
    if body.prompt_logprobs is None:
        name = "logprobs"
        if not (isinstance(body, CompletionRequest) and body.echo) or num_own is None:
            return False
    elif num_own not in (None, body.prompt_logprobs):
        message = f"prompt_logprobs={body.prompt_logprobs} and {num_own} of the answer "
        raise ApiError(message + "differ; one number is possible", name)
    others = ("stream", "frequency_penalty", "presence_penalty")
    if asked := [one for one in others if getattr(body, one)]:
        message = f"{name} of a prompt and {asked[0]} exclude each other"
        raise ApiError(message, name)
    return True


def _biases(body: GenerationRequest, vocab_size: int) -> tuple[tuple[int, float], ...]:
    """Returns the tokens with a bias; allowed tokens have one of 0 if no other.

    Raises:
      ApiError: 400 for an unknown token, too many of them, or a bias out of range.
    """
    biases, allowed = dict[int, float](), body.allowed_token_ids
    for text, bias in (body.logit_bias or {}).items():
        if not -_MAX_BIAS <= bias <= _MAX_BIAS:
            message = f"logit_bias={quote(bias)} of token {quote(text)} is not in "
            raise ApiError(message + "-100..100", "logit_bias")
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            message = f"logit_bias has the key {quote(text)}, which is no token id"
            raise ApiError(message, "logit_bias")
        biases[int(text)] = bias
    if allowed is not None:
        biases = {token: biases.get(token, 0.0) for token in allowed}
    name = "logit_bias" if allowed is None else "allowed_token_ids"
    if len(biases) > MAX_BIASES:
        message = f"{name} has {len(biases)} tokens; the limit is {MAX_BIASES}"
        raise ApiError(message, name)
    for token in biases:
        if not 0 <= token < vocab_size:
            message = f"{name}={quote(token)} is not in 0..{vocab_size - 1}"
            raise ApiError(message, name)
    return tuple(biases.items())


def _bad_words(
    body: GenerationRequest, tokenizer: Tokenizer
) -> Iterator[tuple[int, ...]]:
    """Yields each word's tokens, at the start of a text and after a space.

    Raises:
      ApiError: 400 for a word of no or too many tokens, or too many words.
    """
    words: dict[tuple[int, ...], None] = {}
    for word in body.bad_words or ():
        for text in (word, " " + word.lstrip()):
            tokens = tuple(tokenizer.encode_part(text))
            if not 0 < len(tokens) <= MAX_WORD_TOKENS:
                message = f"bad_words={quote(text)} has {len(tokens)} tokens, which is "
                message += f"not in 1..{MAX_WORD_TOKENS}"
                raise ApiError(message, "bad_words")
            words[tokens] = None
    if len(words) > MAX_BAD_WORDS:
        message = f"bad_words has {len(words)} words, at the start of a text and after "
        message += f"a space; the limit is {MAX_BAD_WORDS}"
        raise ApiError(message, "bad_words")
    yield from words
