"""How the tokens of an answer become its text, and parts of that."""

from typing import NamedTuple

import numpy as np

from jserve.server.chat_request import ChatRequest
from jserve.server.protocol import GenerationRequest
from jserve.server.stop_strings import StopFinder
from jserve.server.tools_input import NamedTool
from jserve.text.answer_parts import (
    NamedCallParser,
    Parser,
    ReasoningParser,
    ToolForm,
    ToolParser,
    has_open_reasoning,
    mark_of,
)
from jserve.text.tokenizer import Tokenizer

_LAST_TOKENS = 16  # of a prompt, among which reasoning may begin


class AnswerText(NamedTuple):
    """What stands between an output's tokens and its answer.

    Attributes:
      skips_special: Whether special tokens have no text.
      finder: Finds stop strings.
      parser: Takes the text apart; None if it is all content.
      has_one_call: Whether it ends where a second tool call begins.
    """

    skips_special: bool
    finder: StopFinder
    parser: Parser | None
    has_one_call: bool = False


def opens_reasoning(prompt_tokens: np.ndarray, tokenizer: Tokenizer) -> bool:
    """Returns whether a prompt ends where reasoning has begun."""
    last = map(tokenizer.token_bytes, prompt_tokens[-_LAST_TOKENS:].tolist())
    return has_open_reasoning(b"".join(last).decode(errors="replace"))


def answer_text(
    body: GenerationRequest,
    prompt_tokens: np.ndarray,
    tokenizer: Tokenizer,
    *,
    form: ToolForm | None,
    has_reasoning: bool,
) -> AnswerText:
    """Returns the text of one output.

    Args:
      form: Form of the model's tool calls, if it has one.
      has_reasoning: Whether reasoning is split off; a constrained answer has some only
        if its prompt has begun it.
    """
    parser: Parser | None = None
    shown = []
    if isinstance(body, ChatRequest):
        if body.has_tools:
            choice = body.tool_choice
            if isinstance(choice, NamedTool):
                parser = NamedCallParser(choice.function.name)
            elif body.requires_call:
                parser = ToolParser("mistral", has_begun=True)
            elif form is not None:
                parser = ToolParser(form)
                shown = [mark_of(form)]
        if has_reasoning:
            has_begun = opens_reasoning(prompt_tokens, tokenizer)
            parser = ReasoningParser(parser, has_begun=has_begun)
    # Special tokens have to be seen where a stop string or a mark has one.
    special = tokenizer.special_texts() if body.stops or shown else []
    is_needed = any(one in text for one in special for text in (*body.stops, *shown))
    skips_special = body.skip_special_tokens is not False
    hidden = [one for one in special if one not in shown]
    finder = StopFinder(
        body.stops,
        keep_stop=bool(body.include_stop_str_in_output),
        hidden=hidden if is_needed and skips_special else (),
    )
    has_one_call = isinstance(body, ChatRequest) and body.parallel_tool_calls is False
    return AnswerText(skips_special and not is_needed, finder, parser, has_one_call)
