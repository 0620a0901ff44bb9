"""Text to token ids and back, one token at a time.

Output is decoded as a stream. A token may end inside a UTF-8 character, so
`Detokenizer.step` returns the text that is certain and keeps the rest. The joined steps
give the same text as decoding everything at once, except for invalid bytes after
characters that were already returned, which decoding at once would replace.
"""

import abc
import codecs
import importlib.resources
import pathlib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import tokenizers
from tokenizers.decoders import DecodeStream

from jserve.text.chat_template import ChatTemplate, Message
from jserve.text.control_tokens import ControlTokens
from jserve.text.folder_settings import (
    add_special_tokens,
    check_within,
    read_sampling,
    read_settings,
    read_template,
)
from jserve.text.vocabulary_files import add_ends, build_tokenizer

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
      source: Arguments of `load_tokenizer` that give this tokenizer.
      sampling: Sampling parameters of requests that name none, by field.
      longest_token_chars: Most characters of a text that are one token.
    """

    source: tuple[Any, ...] = (None,)
    sampling: Mapping[str, float] = MappingProxyType({})
    longest_token_chars = 1

    def __init__(self, eos_token_ids: frozenset[int], template: ChatTemplate | None):
        self.eos_token_ids = eos_token_ids
        self._template = template

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template."""
        return self._template is not None

    @property
    def template_text(self) -> str:
        """What the model's chat template writes itself."""
        return self._template.text if self._template else ""

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
        self, messages: Sequence[Message], **options: Any
    ) -> list[int]:
        """Returns the token ids of a conversation.

        Args:
          options: Further arguments of `ChatTemplate.render`.

        Raises:
          ValueError: If the model has no template, or it refuses the conversation.
        """
        if self._template is None:
            raise ValueError("this model has no chat template, so it has no chats")
        return self._encode_chat(self._template, {"messages": messages, **options})

    @abc.abstractmethod
    def _encode_chat(self, template: ChatTemplate, chat: dict[str, Any]) -> list[int]:
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

    def _encode_chat(self, template: ChatTemplate, chat: dict[str, Any]) -> list[int]:
        tokens: list[int] = []
        for part in _CONTROL.split(template.render(**chat)):
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
    """The tokenizer of a Hugging Face folder.

    Special tokens such as a leading BOS are added by the tokenizer's post-processor. A
    chat template writes its own, so its text gets no others.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        parse_special: str = "never",
        generation_config: str = "auto",
    ):
        settings = read_settings(folder / "tokenizer_config.json")
        self._tokenizer = build_tokenizer(folder, settings)
        named = add_special_tokens(folder, settings, self._tokenizer)
        if self._tokenizer.post_processor is None:
            add_ends(self._tokenizer, settings, named)
        self._anchor = self.encode_part("a")[:1]
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._special_texts = [one.content for one in added if one.special]
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.source = folder, parse_special, generation_config
        self.longest_token_chars = max(map(len, self._tokenizer.get_vocab()), default=1)
        eos: list[Any] = [self._tokenizer.token_to_id(named.get("eos_token", ""))]
        files = [read_settings(folder / "config.json")]
        if generation_config == "auto":
            files.append(read_settings(folder / "generation_config.json"))
            self.sampling = read_sampling(folder / "generation_config.json", files[1])
        for value in (one.get("eos_token_id") for one in files):
            eos += value if isinstance(value, list) else [value]
        ends = frozenset(token for token in eos if isinstance(token, int))
        check_within(folder, files[0].get("vocab_size"), self._tokenizer, ends)
        template = read_template(folder, settings, named)
        super().__init__(ends, template)
        self._control = None
        if parse_special == "never":
            written = template.text if template else ""
            self._control = ControlTokens(self._tokenizer, written)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a prompt, with the post-processor's special tokens."""
        if self._control is None:
            return self._tokenizer.encode(text).ids
        return self._control.encode(text)

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
        before = self._tokenizer.decode(self._anchor, skip_special_tokens=False)
        text = self._tokenizer.decode(
            [*self._anchor, token], skip_special_tokens=False
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
        return self._special_texts

    def detokenizer(
        self, prompt_tokens: Sequence[int], *, skips_special: bool = True
    ) -> Detokenizer:
        """Returns a decoder for the output that follows a prompt."""
        return _StreamDetokenizer(
            self._tokenizer, prompt_tokens, skips_special=skips_special
        )

    def _encode_chat(self, template: ChatTemplate, chat: dict[str, Any]) -> list[int]:
        if self._control is None:
            return self.encode_part(template.render(**chat))
        return self._control.encode_marked(template.render(**self._control.mark(chat)))


def load_tokenizer(
    folder: pathlib.Path | None,
    parse_special: str = "never",
    generation_config: str = "auto",
) -> Tokenizer:
    """Returns the tokenizer of a Hugging Face folder; None is a named model size.

    Args:
      parse_special: Whether text of clients may spell control tokens: never, or user.
      generation_config: Whether the folder's file of that name is read: auto, or none.

    Raises:
      ValueError: If the folder lacks a tokenizer, or one of its files is broken.
    """
    if folder is None:
        return ByteTokenizer()
    return HuggingFaceTokenizer(folder, parse_special, generation_config)
