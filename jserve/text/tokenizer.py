"""Text to token ids and back, one token at a time.

Output is decoded as a stream. A token may end inside a UTF-8 character, so
`Detokenizer.step` returns the text that is certain and keeps the rest. The joined steps
give the same text as decoding everything at once, except for invalid bytes after
characters that were already returned, which decoding at once would replace.
"""

import abc
import codecs
import importlib.resources
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers.decoders import DecodeStream

from jserve.text.chat_template import ChatTemplate, Message
from jserve_models.hf import read_json

REPLACEMENT = "\ufffd"  # text of bytes and ids that have none
_PRIMING_TOKENS = 6  # the prompt's last tokens, which decide about spaces


class Detokenizer(abc.ABC):
    """Decodes one output, token by token."""

    @abc.abstractmethod
    def step(self, token: int) -> str:
        """Takes a token; returns the text that is now certain, which may be empty."""

    @abc.abstractmethod
    def finish(self) -> str:
        """Returns the text held back, with an incomplete character replaced."""


class Tokenizer(abc.ABC):
    """A tokenizer, as the server uses it.

    Attributes:
      eos_token_ids: Tokens that end an output; their text is not part of it.
      folder: Hugging Face folder; None for a named model size.
      longest_token_chars: Most characters of a text that are one token.
    """

    folder: pathlib.Path | None = None
    longest_token_chars = 1

    def __init__(self, eos_token_ids: frozenset[int], template: ChatTemplate | None):
        self.eos_token_ids = eos_token_ids
        self._template = template

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template."""
        return self._template is not None

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a prompt, with special tokens such as BOS."""

    @abc.abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens; control tokens have none."""

    @abc.abstractmethod
    def encode_part(self, text: str) -> list[int]:
        """Returns the token ids of a part of a text, without special tokens."""

    @abc.abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """Returns the UTF-8 of a token, which may be part of a character."""

    @abc.abstractmethod
    def special_texts(self) -> list[str]:
        """Returns the texts of special tokens."""

    @abc.abstractmethod
    def detokenizer(
        self, prompt_tokens: Sequence[int], *, skips_special: bool = True
    ) -> Detokenizer:
        """Returns a decoder for the output that follows a prompt.

        Args:
          skips_special: Whether special tokens have no text.
        """

    def apply_chat_template(
        self, messages: Sequence[Message], *, add_generation_prompt: bool
    ) -> list[int]:
        """Returns the token ids of a conversation.

        Raises:
          ValueError: If the model has no template, or it refuses the conversation.
        """
        if self._template is None:
            raise ValueError("this model has no chat template, so it has no chats")
        return self._encode_chat(
            self._template.render(messages, add_generation_prompt=add_generation_prompt)
        )

    @abc.abstractmethod
    def _encode_chat(self, text: str) -> list[int]:
        """Returns the ids of a rendered template, which has its special tokens."""


# Byte values are their own ids; control tokens follow.
BYTE_CONTROL_TOKENS = {
    "<|bos|>": 256,
    "<|eos|>": 257,
    "<|system|>": 258,
    "<|user|>": 259,
    "<|assistant|>": 260,
    "<|end|>": 261,
}
_CONTROL = re.compile("(" + "|".join(map(re.escape, BYTE_CONTROL_TOKENS)) + ")")
_NAMES = {token: name for name, token in BYTE_CONTROL_TOKENS.items()}
_FIRST_UNUSED = 256 + len(BYTE_CONTROL_TOKENS)


def _escape(value: Any) -> Any:
    """Escapes a printed value, so that it holds no control token; see `_unescape`."""
    if not isinstance(value, str):
        return value
    return value.replace("\0", "\0\0").replace("<|", "<\0|")


def _unescape(text: str) -> str:
    return re.sub("\0(.)", r"\1", text, flags=re.DOTALL)


class _ByteDetokenizer(Detokenizer):
    def __init__(self, *, skips_special: bool = True) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._skips_special = skips_special

    def step(self, token: int) -> str:
        if token < 256:
            return self._decoder.decode(bytes((token,)))
        if token < _FIRST_UNUSED:
            return "" if self._skips_special else self.finish() + _NAMES[token]
        return self.finish() + REPLACEMENT

    def finish(self) -> str:
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class ByteTokenizer(Tokenizer):
    """The tokenizer of named model sizes: a token per UTF-8 byte, and control tokens.

    Ids 0 to 255 are bytes, 256 to 261 are control tokens. A model's vocabulary may be
    padded to a larger size; ids beyond decode to U+FFFD. Text never becomes a control
    token: only the chat template writes them, and values that it prints are escaped.
    The folder `byte_tokenizer` is the same for Hugging Face's libraries, except that
    there text which spells a control token becomes it.
    """

    def __init__(self) -> None:
        ends = {BYTE_CONTROL_TOKENS["<|eos|>"], BYTE_CONTROL_TOKENS["<|end|>"]}
        folder = importlib.resources.files("jserve.text").joinpath("byte_tokenizer")
        text = folder.joinpath("chat_template.jinja").read_text(encoding="utf-8")
        super().__init__(frozenset(ends), ChatTemplate(text, finalize=_escape))

    def encode(self, text: str) -> list[int]:
        """Returns the bytes of the text."""
        return list(text.encode("utf-8"))

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens; control tokens have none."""
        stream = _ByteDetokenizer()
        return "".join([stream.step(token) for token in tokens]) + stream.finish()

    def encode_part(self, text: str) -> list[int]:
        """Returns the bytes of the text."""
        return self.encode(text)

    def token_bytes(self, token: int) -> bytes:
        """Returns the byte, or the name of a control token."""
        if token < 256:
            return bytes((token,))
        return _NAMES.get(token, REPLACEMENT).encode()

    def special_texts(self) -> list[str]:
        """Returns the names of the control tokens."""
        return list(BYTE_CONTROL_TOKENS)

    def detokenizer(
        self, prompt_tokens: Sequence[int], *, skips_special: bool = True
    ) -> Detokenizer:
        """Returns a decoder; an incomplete character of the prompt is ignored."""
        return _ByteDetokenizer(skips_special=skips_special)

    def _encode_chat(self, text: str) -> list[int]:
        tokens: list[int] = []
        for part in _CONTROL.split(text):
            control = BYTE_CONTROL_TOKENS.get(part)
            if control is None:
                tokens.extend(_unescape(part).encode("utf-8"))
            else:
                tokens.append(control)
        return tokens


def _byte_chars() -> dict[str, int]:
    """Returns the byte of each character in which byte-level vocabularies write it.

    Bytes that are printable are their own characters; the others follow from 256.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    numbered = {chr(256 + place): byte for place, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | numbered


_BYTE_CHARS = _byte_chars()


class _StreamDetokenizer(Detokenizer):
    """Decodes with the tokenizer's stream; keeps the tokens that it holds back.

    A byte-fallback decoder replaces every byte of a run that is not UTF-8, also those
    of characters already returned. The stream then refuses all further tokens. In that
    case the tokens held back are decoded separately, and a new stream is begun.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        prompt_tokens: Sequence[int],
        *,
        skips_special: bool,
    ):
        self._tokenizer = tokenizer
        self._skips_special = skips_special
        self._stream = DecodeStream(skip_special_tokens=skips_special)
        self._held: list[int] = []
        for token in prompt_tokens[-_PRIMING_TOKENS:]:
            self.step(token)
        self._held.clear()

    def step(self, token: int) -> str:
        self._held.append(token)
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception:  # the library raises plain Exception
            text = self.finish()
            self._stream = DecodeStream(skip_special_tokens=self._skips_special)
            # Give the new stream the token, so that it does not drop the next space as
            # at the beginning of a text. If it holds the token back, it would return
            # its text once more: then an empty stream is better.
            if not self._stream.step(self._tokenizer, token):
                self._stream = DecodeStream(skip_special_tokens=self._skips_special)
        if text:
            self._held.clear()
        return text or ""

    def finish(self) -> str:
        held, self._held = self._held, []
        if not held:
            return ""
        return self._tokenizer.decode(held, skip_special_tokens=self._skips_special)


class HuggingFaceTokenizer(Tokenizer):
    """The tokenizer of a Hugging Face folder, in `tokenizer.json`.

    Special tokens such as a leading BOS are added by the tokenizer's post-processor. A
    chat template writes its own, so its text gets no others.
    """

    def __init__(self, folder: pathlib.Path):
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"no tokenizer.json in {folder}")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{path} is not a tokenizer: {error}") from None
        [self._anchor, *_] = self._tokenizer.encode("a", add_special_tokens=False).ids
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.folder = folder
        self.longest_token_chars = max(map(len, self._tokenizer.get_vocab()), default=1)
        settings = _settings(folder / "tokenizer_config.json")
        eos: list[Any] = [
            self._tokenizer.token_to_id(_token_text(settings.get("eos_token")) or "")
        ]
        for name in ("generation_config.json", "config.json"):
            value = _settings(folder / name).get("eos_token_id")
            eos += value if isinstance(value, list) else [value]
        ends = frozenset(token for token in eos if isinstance(token, int))
        # A tokenizer may have more that are added: Gemma 3's has one for images.
        own = self._tokenizer.get_vocab(with_added_tokens=False).values()
        vocab_size = _settings(folder / "config.json").get("vocab_size", math.inf)
        for name, tokens in (("token", own), ("end token", ends)):
            if (last := max(tokens, default=0)) >= vocab_size:
                raise ValueError(
                    f"{path} has the {name} {last}, and config.json has "
                    f"vocab_size={vocab_size}"
                )
        super().__init__(ends, _chat_template(folder, settings))

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a prompt, with the post-processor's special tokens."""
        return self._tokenizer.encode(text).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens; special tokens have none."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def encode_part(self, text: str) -> list[int]:
        """Returns the ids of a part of a text, without special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token: int) -> bytes:
        """Returns the UTF-8 of a token, which may be part of a character.

        It is decoded after another token, so that a space before it is kept.
        """
        name = self._tokenizer.id_to_token(token) or REPLACEMENT
        before = self._tokenizer.decode([self._anchor], skip_special_tokens=False)
        text = self._tokenizer.decode(
            [self._anchor, token], skip_special_tokens=False
        ).removeprefix(before)
        if REPLACEMENT not in text:
            return text.encode()
        if match := re.fullmatch("<0x([0-9A-F]{2})>", name):
            return bytes.fromhex(match[1])
        if set(name) <= _BYTE_CHARS.keys():
            return bytes(map(_BYTE_CHARS.__getitem__, name))
        return text.encode()

    def special_texts(self) -> list[str]:
        """Returns the texts of special tokens."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return [one.content for one in added if one.special]

    def detokenizer(
        self, prompt_tokens: Sequence[int], *, skips_special: bool = True
    ) -> Detokenizer:
        """Returns a decoder for the output that follows a prompt."""
        return _StreamDetokenizer(
            self._tokenizer, prompt_tokens, skips_special=skips_special
        )

    def _encode_chat(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def _settings(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _token_text(value: Any) -> str | None:
    """Returns a token of the settings, which is a text or an object that holds it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _chat_template(
    folder: pathlib.Path, settings: dict[str, Any]
) -> ChatTemplate | None:
    """Returns the template of a folder, from either of its files; None without one."""
    path = folder / "chat_template.jinja"
    value = settings.get("chat_template")
    if path.is_file():
        value = path.read_text(encoding="utf-8")
    if isinstance(value, list):  # several, by name
        rows = [row for row in value if isinstance(row, dict)]
        value = {row.get("name"): row.get("template") for row in rows}.get("default")
    if not isinstance(value, str):
        return None
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    texts = {name: _token_text(settings.get(name)) for name in names}
    return ChatTemplate(
        value,
        variables={name: text for name, text in texts.items() if text is not None},
    )


def load_tokenizer(folder: pathlib.Path | None) -> Tokenizer:
    """Returns the tokenizer of a Hugging Face folder; None is a named model size.

    Raises:
      ValueError: If the folder lacks a tokenizer, or one of its files is broken.
    """
    return ByteTokenizer() if folder is None else HuggingFaceTokenizer(folder)
