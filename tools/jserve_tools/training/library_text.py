"""The text that a byte model learns: the standard library of the running Python.

Every installation has it. Sources are one stream of documents; docstrings give a second
one of short chats, so that the model also knows the form of a conversation. Files are
split by a hash of their names, so the same ones are held out everywhere.
"""

import ast
import dataclasses
import pathlib
import sys
import sysconfig
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from jserve.text.tokenizer import BYTE_CONTROL_TOKENS, ByteTokenizer

_HELD_OUT_ONE_IN = 20  # files
_MAX_ANSWER_CHARACTERS = 400
_TABLES = ("encodings", "topics.py")  # neither sources nor docstrings
_QUESTIONS = ("What does {} do?", "Explain {}.", "{}?", "How does {} work?")
_BOS, _EOS = BYTE_CONTROL_TOKENS["<|bos|>"], BYTE_CONTROL_TOKENS["<|eos|>"]


@dataclasses.dataclass(frozen=True)
class Stream:
    """Documents, one after another.

    Attributes:
      tokens: `[N]` uint16 token ids; each document has its BOS and its end.
      starts: `[W]` places where a window may begin.
    """

    tokens: np.ndarray
    starts: np.ndarray

    def windows(self, rng: np.random.Generator, count: int, width: int) -> np.ndarray:
        """Returns random windows, `[count, width]` int32.

        Raises:
          ValueError: If the stream is shorter than a window.
        """
        possible = self.starts[: np.searchsorted(self.starts, self.tokens.size - width)]
        if not possible.size:
            raise ValueError(f"{self.tokens.size} tokens of text hold no window")
        first = rng.choice(possible, count)
        return self.tokens[first[:, None] + np.arange(width)].astype(np.int32)


@dataclasses.dataclass(frozen=True)
class LibraryText:
    """One part of the text, as sources and as chats about them."""

    sources: Stream
    chats: Stream


def library_files(*, is_held_out: bool) -> list[pathlib.Path]:
    """Returns the files of one part of the split, without tests, in a fixed order."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    names = {
        path.relative_to(root).as_posix(): path
        for top in root.iterdir()
        if top.name.removesuffix(".py") in sys.stdlib_module_names
        for path in (top.rglob("*.py") if top.is_dir() else [top])
    }
    return [
        names[name]
        for name in sorted(names)
        if not any(map(_is_left_out, name.split("/")))
        and (zlib.crc32(name.encode()) % _HELD_OUT_ONE_IN == 0) == is_held_out
    ]


def _is_left_out(part: str) -> bool:
    return part in _TABLES or part.startswith("test") or part.endswith("_test")


def read_text(files: Sequence[pathlib.Path]) -> LibraryText:
    """Returns the text of files; those that are not UTF-8 or Python are left out.

    Windows of sources begin at lines, as prompts do, which have no BOS; windows of
    chats begin at a chat.
    """
    sources: list[list[int]] = []
    chats: list[list[int]] = []
    tokenizer = ByteTokenizer()
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (UnicodeDecodeError, SyntaxError):
            continue
        sources.append([_BOS, *tokenizer.encode(text), _EOS])
        for question, answer in _docstrings(tree, path.stem):
            turns = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            chats.append(
                tokenizer.apply_chat_template(turns, add_generation_prompt=False)
            )
    source, chat = (
        np.concatenate([np.array(one, np.uint16) for one in documents])
        for documents in (sources, chats)
    )
    follows_line = np.isin(source[:-1], (_EOS, ord("\n")))
    return LibraryText(
        sources=Stream(source, np.flatnonzero(follows_line) + 1),
        chats=Stream(chat, np.flatnonzero(chat == _BOS)),
    )


def _docstrings(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """Yields a question and the first paragraph of a docstring that answers it."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, *kinds)) and (text := ast.get_docstring(node)):
            name = f"{module}.{node.name}" if isinstance(node, kinds) else module
            answer = " ".join(text.partition("\n\n")[0].split())
            if 0 < len(answer) <= _MAX_ANSWER_CHARACTERS:
                form = _QUESTIONS[zlib.crc32(name.encode()) % len(_QUESTIONS)]
                yield form.format(name), answer
