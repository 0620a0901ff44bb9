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
    """

    skips_special: bool
    finder: StopFinder
    parser: Parser | None


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
      has_reasoning: Whether the model's reasoning is split off.
    """
    parser: Parser | None = None
    is_called = isinstance(body, ChatRequest) and body.call_schema is not None
    shown = []
    if isinstance(body, ChatRequest):
        if body.has_tools:
            choice = body.tool_choice
            if isinstance(choice, NamedTool):
                parser = NamedCallParser(choice.function.name)
            elif is_called:
                parser = ToolParser("mistral", has_begun=True)
            elif form is not None:
                parser = ToolParser(form)
                shown = [mark_of(form)]
        if has_reasoning and not is_called:
            last = map(tokenizer.token_bytes, prompt_tokens[-_LAST_TOKENS:].tolist())
            text = b"".join(last).decode(errors="replace")
            parser = ReasoningParser(parser, has_begun=has_open_reasoning(text))
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
    return AnswerText(skips_special and not is_needed, finder, parser)
