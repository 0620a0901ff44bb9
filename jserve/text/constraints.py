"""What an answer has to be: a JSON schema, a regular expression, choices or a grammar.

llguidance (Rust) says after each token which ones may follow. It knows a tokenizer by
the bytes of its tokens, and is imported with the first constraint.
"""

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from jserve.text.answer_parts import END_OF_THINK
from jserve.text.tokenizer import Tokenizer
from jserve_sched.requests.request import Request

_END = END_OF_THINK.encode()
Kind = Literal["json", "regex", "choice", "grammar"]
_FORMS: dict[Kind, str] = {
    "json": "JSON schema",
    "regex": "regular expression",
    "choice": "list of texts",
    "grammar": "grammar in Lark's form",
}
_MAX_CHARS = 2**16  # of what is asked for; larger grammars take a minute
# Between two parts of JSON: enough for an indented answer, but not for ever.
_JSON_SPACE = r"[\x20\x0A\x09]{1,20}"


class Constraint:
    """What may come next in one output, perhaps only once its reasoning has ended."""

    def __init__(self, matcher: Any):
        self.matcher = matcher
        self._token_bytes: Callable[[int], bytes] | None = None
        self._seen = b""

    @property
    def is_waiting(self) -> bool:
        """Whether reasoning has not ended yet, of which anything may be."""
        return self._token_bytes is not None

    @property
    def error(self) -> str:
        """Why it cannot be followed any more; "" while it can."""
        return str(self.matcher.get_error()).partition("\n")[0]

    def copy(
        self, after_reasoning: Callable[[int], bytes] | None = None
    ) -> "Constraint":
        """Returns one for another output, which may have to reason before.

        Args:
          after_reasoning: Returns the bytes of a token, to find the end of reasoning.
        """
        found = Constraint(self.matcher.deep_copy())
        found._token_bytes = after_reasoning
        return found

    def allows(self, tokens: Iterable[int]) -> bool:
        """Returns whether one of these tokens may come next."""
        return any(self.matcher.validate_tokens([one]) for one in tokens)

    def accept(self, token: int) -> None:
        """Takes the next token of the output."""
        if self._token_bytes is not None:
            self._seen = self._seen[-len(_END) :] + self._token_bytes(token)
            if _END in self._seen:
                self._token_bytes = None
        elif not self.matcher.is_stopped():
            self.matcher.consume_token(token)


class GivenTokens:
    """The first tokens of one output are known, as a prompt that is scored is."""

    def __init__(self, tokens: np.ndarray, then: Constraint | None):
        """Begins with `tokens`; `then` says what may follow them."""
        self._left = tokens[::-1].tolist()
        self._then = then

    @property
    def error(self) -> str:
        """Why it cannot be followed any more; "" while it can."""
        return self._then.error if self._then else ""

    def accept(self, token: int) -> None:
        """Takes the next token of the output."""
        if self._left:
            self._left.pop()
        elif self._then:
            self._then.accept(token)

    def fill(self, masks: np.ndarray, row: int) -> None:
        """Writes which token may follow; see `fill_masks`."""
        if self._left:
            word, bit = divmod(self._left[-1], 32)
            masks[row] = 0
            masks[row, word : word + 1].view(np.uint32)[:] = 1 << bit
        elif self._then:
            fill_masks([(row, self._then)], masks)


class _Vocabulary:
    """A tokenizer, as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self.tokens = [tokenizer.token_bytes(one) for one in range(vocab_size)]
        special = set(tokenizer.special_texts())
        self.special_token_ids = [
            index
            for index, text in enumerate(self.tokens)
            if text.decode(errors="replace") in special
        ]
        self.eos_token_id, *_ = tokenizer.eos_token_ids
        self.bos_token_id = None
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode_part(text)


class Constraints:
    """Makes the constraints of one model."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._known: Any = None  # what llguidance knows of the tokenizer

    def make(self, kind: Kind, value: Any) -> Constraint:
        """Returns a constraint; takes milliseconds, the first one a second.

        Args:
          value: A JSON schema, a regular expression, a list of texts, or a grammar in
            Lark's form.

        Raises:
          ValueError: If it cannot be followed; says why.
        """
        import llguidance

        size = len(value if isinstance(value, str) else json.dumps(value))
        if size > _MAX_CHARS:
            raise ValueError(f"it has {size} characters; the limit is {_MAX_CHARS}")
        with self._lock:
            if self._known is None:
                self._known = llguidance.LLTokenizer(
                    llguidance.TokenizerWrapper(
                        _Vocabulary(self._tokenizer, self._vocab_size)
                    ),
                    n_vocab=self._vocab_size,
                    eos_token=sorted(self._tokenizer.eos_token_ids),
                )
        matcher = llguidance.LLMatcher
        if kind == "json":
            options: Any = {"whitespace_pattern": _JSON_SPACE}
            schema = {} if value is True else value
            grammar = matcher.grammar_from_json_schema(schema, options)
        elif kind == "regex":
            grammar = matcher.grammar_from_regex(value)
        elif kind == "choice":
            either = " | ".join(json.dumps(one) for one in value)
            grammar = matcher.grammar_from_lark(f"start: {either}")
        else:
            grammar = matcher.grammar_from_lark(value)
        limits = llguidance.LLParserLimits(verbose_errors=False)
        made = Constraint(matcher(self._known, grammar, log_level=0, limits=limits))
        if made.matcher.is_error():
            reason = " ".join(made.matcher.get_error().split())
            raise ValueError(f"as a {_FORMS[kind]}: {reason}")
        return made


def fill_masks(
    constraints: Sequence[tuple[int, Constraint | GivenTokens]], masks: np.ndarray
) -> None:
    """Writes which tokens may follow.

    Args:
      constraints: Rows of `masks`, and the constraint of each.
      masks: `[rows, words]` int32, -1; bit `t % 32` of word `t // 32` is of token t.
    """
    from llguidance.numpy import fill_next_token_bitmask

    for row, one in constraints:
        if isinstance(one, GivenTokens):
            one.fill(masks, row)
        elif one.is_waiting:
            masks[row] = -1
        else:
            fill_next_token_bitmask(one.matcher, masks, row)


def accept_outputs(outputs: Iterable[tuple[Request, int | None]]) -> list[str]:
    """Tells constraints their next tokens; returns the ids of requests that failed."""
    failed = []
    for request, token in outputs:
        if request.constraint is not None and token is not None:
            request.constraint.accept(token)
            if request.constraint.error:
                failed.append(request.request_id)
    return failed


def failure_of(request: Request) -> str | None:
    """Returns why a request failed; None if it did not, or has not ended."""
    if request.constraint is None or request.finish_reason is None:
        return None
    error = request.constraint.error
    return f"its constraint cannot be followed any more: {error}" if error else None
