"""Takes an answer apart while it is written: reasoning, content and tool calls.

A call is JSON in a form that depends on the model:

    hermes        <tool_call>{"name": "f", "arguments": {...}}</tool_call>, repeated
    llama3_json   {"name": "f", "parameters": {...}}, several after ";", and no content
    mistral       [TOOL_CALLS][{"name": "f", "arguments": {...}}, ...] or
                  [TOOL_CALLS]f[ARGS]{...}

Arguments are passed on as they come. What turns out to be no call is content.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

ToolForm = Literal["hermes", "llama3_json", "mistral"]
_MARKS: dict[ToolForm, tuple[str, str]] = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "llama3_json": ("<|python_tag|>", ""),
    "mistral": ("[TOOL_CALLS]", ""),
}
_HEAD = re.compile(
    r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*'
    r'"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_BARE_HEAD = re.compile(r"([\w.-]+)\s*(?:\[CALL_ID\]\w+)?\s*(?:\[ARGS\])?\s*(?=\{)")
_MAY_BE_BARE = re.compile(r"[\w.-]*\s*(?:\[[\w\[\]]*)?\s*")
_THINK, END_OF_THINK = "<think>", "</think>"


class CallDelta(NamedTuple):
    """More of a tool call: its name, once, or the next part of its arguments."""

    number: int
    name: str | None
    arguments: str


@dataclasses.dataclass(frozen=True)
class Delta:
    """More of an answer."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()

    def __add__(self, other: "Delta") -> "Delta":
        return Delta(
            self.content + other.content,
            self.reasoning + other.reasoning,
            self.calls + other.calls,
        )

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)


class Parser(Protocol):
    """Takes a text apart."""

    def push(self, text: str) -> Delta:
        """Takes a piece of text; returns what is certain."""

    def finish(self) -> Delta:
        """Returns what was held back, at the end."""


def _held(text: str, mark: str) -> int:
    """Returns where the end of the text begins that may become a mark."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-size:]):
            return len(text) - size
    return len(text)


class _Value:
    """Finds the end of a JSON object that comes in pieces, or that of one around it."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = self._is_escaped = False

    def push(self, text: str) -> int | None:
        """Returns one past its end in this piece; None if it goes on."""
        for place, char in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                self._is_escaped = char == "\\"
                self._in_string = char != '"'
            elif char == '"':
                self._in_string = True
            else:
                self._depth += (char in "{[") - (char in "}]")
                if not self._depth:
                    return place + 1
        return None


class ToolParser:
    """Finds tool calls, in the form of a model."""

    def __init__(self, form: ToolForm, *, has_begun: bool = False):
        """Makes a parser; with `has_begun` the text begins with a call."""
        self._form = form
        self._start, self._end = _MARKS[form]
        self._text = ""  # not taken apart yet
        self._step: Callable[[], Delta | None] = (
            self._find_call if has_begun else self._find_start
        )
        self._num_calls = 0
        self._has_content = False
        self._is_after_call = False  # with nothing visible since
        self._opening = "" if has_begun or form == "llama3_json" else self._start
        self._value = _Value()  # that is being read
        self._num_scanned = 0  # characters of it that have been
        self._is_bare = False

    def push(self, text: str) -> Delta:
        """Takes a piece of text; returns what is certain."""
        self._text += text
        found = Delta()
        while (more := self._step()) is not None:
            found += more
        self._has_content |= bool(found.content)
        return found

    def finish(self) -> Delta:
        """Returns what was held back, at the end."""
        text, self._text = self._text, ""
        if self._step == self._find_call and text.strip(" \r\n]"):
            return Delta(self._opening + text)
        return Delta(text) if self._step == self._find_start else Delta()

    def _find_start(self) -> Delta | None:
        """Looks for the beginning of a call."""
        text = self._text
        if self._form == "llama3_json":
            bare = text.lstrip().removeprefix(self._start).lstrip()
            if self._has_content:
                self._text = ""
                return Delta(text) if text else None
            if bare.startswith("{"):
                self._text, self._step = bare, self._find_call
                return Delta()
            if not bare or self._start.startswith(bare):
                return None
            self._text, self._has_content = "", True
            return Delta(text)
        place = text.find(self._start)
        if place < 0:
            place = _held(text, self._start)
            shown, self._text = text[:place], text[place:]
        else:
            shown, self._text = text[:place], text[place + len(self._start) :]
            self._step = self._find_call
        if self._is_after_call:
            shown = shown.lstrip()
            self._is_after_call = not shown
        return Delta(shown) if shown or self._step == self._find_call else None

    def _find_call(self) -> Delta | None:
        """Waits until a call's name is there."""
        text = self._text.lstrip(" \r\n\t,;")
        if self._form == "mistral":
            if text.startswith("]"):
                self._text, self._step = text[1:], self._find_start
                return Delta()
            if text and text != self._start and self._start.startswith(text):
                return None  # a list begins, or the mark of the next call
            text = text.removeprefix(self._start).lstrip(" \r\n\t[")
        found, is_bare = _HEAD.match(text), False
        if found is None and self._form == "mistral":
            found, is_bare = _BARE_HEAD.match(text), True
        if found:
            name = found[1] if is_bare else _name(found[1])
            if name is not None:
                self._text, self._step = text[found.end() :], self._take_arguments
                self._is_bare = is_bare
                return self._begin(name)
        may_be_bare = self._form == "mistral" and _MAY_BE_BARE.fullmatch(text)
        if text and not text.startswith("{") and not may_be_bare:
            return self._give_up(text)
        if not text.startswith("{"):
            return None
        end = self._value.push(text[self._num_scanned :])
        if end is None:
            self._text, self._num_scanned = text, len(text)
            return None
        end += self._num_scanned
        call = _decoded(text[:end])
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return self._give_up(text)
        self._text, self._step = text[end:], self._find_end
        arguments = call.get("arguments", call.get("parameters")) or {}
        return self._begin(call["name"], json.dumps(arguments, ensure_ascii=False))

    def _begin(self, name: str, arguments: str = "") -> Delta:
        self._value, self._num_scanned = _Value(), 0
        self._num_calls += 1
        self._is_after_call = True
        return Delta(calls=(CallDelta(self._num_calls - 1, name, arguments),))

    def _give_up(self, text: str) -> Delta:
        """Returns what is no call as content; calls may follow."""
        self._text, self._step = "", self._find_start
        self._value, self._num_scanned = _Value(), 0
        self._has_content = True
        return Delta(self._opening + text)

    def _take_arguments(self) -> Delta | None:
        """Passes arguments on."""
        text = self._text
        if not text:
            return None
        end = self._value.push(text)
        shown = text if end is None else text[:end]
        self._text = text[len(shown) :]
        if end is not None:
            self._step = self._find_end if self._is_bare else self._close
            self._value = _Value(depth=0 if self._is_bare else 1)
        return Delta(calls=(CallDelta(self._num_calls - 1, None, shown),))

    def _close(self) -> Delta | None:
        """Waits for the bracket that closes a call; drops what else it says."""
        end = self._value.push(self._text)
        self._text = "" if end is None else self._text[end:]
        if end is None:
            return None
        self._step, self._value = self._find_end, _Value()
        return Delta()

    def _find_end(self) -> Delta | None:
        """Waits for the mark after a call."""
        text = self._text.lstrip()
        if self._end and len(text) < len(self._end) and self._end.startswith(text):
            return None
        self._text = text.removeprefix(self._end)
        self._step = self._find_start if self._end else self._find_call
        return Delta() if self._text else None


def _decoded(text: str) -> object:
    """Returns the value of JSON; None for what is none."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value


def _name(text: str) -> str | None:
    """Returns the name that a JSON string is; None for what is none."""
    name = _decoded(text)
    return name if isinstance(name, str) else None


class NamedCallParser:
    """The text is the arguments of one function."""

    def __init__(self, name: str):
        self._name: str | None = name

    def push(self, text: str) -> Delta:
        """Passes arguments on."""
        if not text:
            return Delta()
        name, self._name = self._name, None
        first = (CallDelta(0, name, ""),) if name is not None else ()
        return Delta(calls=(*first, CallDelta(0, None, text)))

    def finish(self) -> Delta:
        """Returns nothing: nothing is held back."""
        return Delta()


class ReasoningParser:
    """Splits off what stands between `<think>` and `</think>` at the beginning.

    Attributes:
      is_reasoning: Whether what comes next is reasoning, as far as is known.
    """

    def __init__(self, rest: Parser | None, *, has_begun: bool):
        """Makes a parser.

        Args:
          rest: Parser of what follows.
          has_begun: Whether the prompt ends inside the reasoning.
        """
        self._rest = rest
        self._text = ""
        self.is_reasoning = has_begun
        self._is_open = True  # it may begin, or has not ended
        self._strips = False  # line ends before the content

    def push(self, text: str) -> Delta:
        """Takes a piece of text; returns what is certain."""
        if not self._is_open:
            return self._content(text)
        self._text += text
        if not self.is_reasoning:
            bare = self._text.lstrip()
            if len(bare) < len(_THINK) and _THINK.startswith(bare):
                return Delta()
            if not bare.startswith(_THINK):
                self._is_open, text = False, self._text
                return self._content(text)
            self.is_reasoning, self._text = True, bare.removeprefix(_THINK)
        place = self._text.find(END_OF_THINK)
        if place < 0:
            place = _held(self._text, END_OF_THINK)
            shown, self._text = self._text[:place], self._text[place:]
            return Delta(reasoning=shown)
        shown = self._text[:place]
        after = self._text[place + len(END_OF_THINK) :]
        self._is_open = self.is_reasoning = False
        self._strips = True
        return Delta(reasoning=shown) + self._content(after)

    def finish(self) -> Delta:
        """Returns what was held back, at the end."""
        if self._is_open:
            held = self._text
            return Delta(reasoning=held) if self.is_reasoning else Delta(held)
        return self._rest.finish() if self._rest else Delta()

    def _content(self, text: str) -> Delta:
        if self._strips:
            text = text.lstrip("\n")
            self._strips = not text
        return self._rest.push(text) if self._rest else Delta(text)


def mark_of(form: ToolForm) -> str:
    """Returns the mark with which calls begin."""
    return _MARKS[form][0]


def find_tool_form(template: str) -> ToolForm | None:
    """Returns the form of tool calls in which a template writes them; None for none."""
    for form, (start, _) in _MARKS.items():
        if start in template:
            return form
    return "llama3_json" if '{"name": ' in template else None


def has_open_reasoning(prompt: str) -> bool:
    """Returns whether a prompt ends inside the reasoning."""
    return prompt.rstrip().endswith(_THINK)
