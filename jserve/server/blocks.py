"""Blocks: an answer as a list of reasoning, texts and tool calls, one after the other.

OpenAI's responses and Anthropic's messages have this form; chats do not.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from jserve.server.formats import new_call_id
from jserve.server.generation import Generation
from jserve.text.answer_parts import Delta

Kind = Literal["reasoning", "text", "call"]


class _Piece(NamedTuple):
    """More of a block: the call's number tells it from another call."""

    kind: Kind
    number: int
    name: str
    text: str


@dataclasses.dataclass
class Block:
    """A block of an answer, as far as it is written.

    Attributes:
      index: Place among the blocks.
      text: Its text, or a call's arguments, in JSON.
      name: Name of the tool that is called.
      block_id: Id of the call.
    """

    kind: Kind
    index: int
    number: int = 0
    name: str = ""
    text: str = ""
    block_id: str = dataclasses.field(default_factory=new_call_id)

    @property
    def arguments(self) -> Any:
        """The arguments of a call; {} if they were cut."""
        try:
            return json.loads(self.text or "{}")
        except ValueError:
            return {}


def _pieces(more: str | Delta) -> Iterator[_Piece]:
    if isinstance(more, str):
        more = Delta(more)
    if more.reasoning:
        yield _Piece("reasoning", 0, "", more.reasoning)
    if more.content:
        yield _Piece("text", 0, "", more.content)
    for number, name, arguments in more.calls:
        yield _Piece("call", number, name or "", arguments)


class Blocks(list[Block]):
    """The blocks of one output."""

    def push(self, more: str | Delta) -> Iterator[tuple[Block, str, bool]]:
        """Adds to an answer; yields what was added to which block, if it is new."""
        for kind, number, name, text in _pieces(more):
            last = self[-1] if self else None
            is_new = last is None or (last.kind, last.number) != (kind, number)
            if is_new or last is None:
                last = Block(kind, len(self), number, name)
                self.append(last)
            last.text += text
            yield last, text, is_new


def blocks_of(one: Generation) -> Blocks:
    """Returns the blocks of an output that has ended."""
    blocks = Blocks()
    for part in one.texts if one.parser is None else one.parts:
        for _ in blocks.push(part):
            pass
    return blocks


def encode_event(name: str, data: dict[str, Any]) -> bytes:
    """Returns an event whose name is also the type of its data."""
    body = json.dumps({"type": name} | data)
    return f"event: {name}\ndata: {body}\n\n".encode()
