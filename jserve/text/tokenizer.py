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
from jserve.text.folder_settings import (
    add_special_tokens,
    read_sampling,
    read_settings,
    read_template,
)
from jserve.text.vocabulary_files import add_ends, build_tokenizer

REPLACEMENT = "\ufffd"  # text of bytes and ids that have none
_BEGIN, _END = "\ufdd0", "\ufdd1"  # noncharacters around what clients spell
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

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a prompt, with special tokens such as BOS."""

    @abc.abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens; control tokens have none."""

    @abc.abstractmethod
    def detokenizer(self, prompt_tokens: Sequence[int]) -> Detokenizer:
        """Returns a decoder for the output that follows a prompt."""

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
_FIRST_UNUSED = 256 + len(BYTE_CONTROL_TOKENS)


def _escape(value: Any) -> Any:
    """Escapes a printed value, so that it holds no control token; see `_unescape`."""
    if not isinstance(value, str):
        return value
    return value.replace("\0", "\0\0").replace("<|", "<\0|")


def _unescape(text: str) -> str:
    return re.sub("\0(.)", r"\1", text, flags=re.DOTALL)


class _ByteDetokenizer(Detokenizer):
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def step(self, token: int) -> str:
        if token < 256:
            return self._decoder.decode(bytes((token,)))
        if token < _FIRST_UNUSED:
            return ""
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

    def detokenizer(self, prompt_tokens: Sequence[int]) -> Detokenizer:
        """Returns a decoder; an incomplete character of the prompt is ignored."""
        return _ByteDetokenizer()

    def _encode_chat(self, template: ChatTemplate, chat: dict[str, Any]) -> list[int]:
        tokens: list[int] = []
        for part in _CONTROL.split(template.render(**chat)):
            control = BYTE_CONTROL_TOKENS.get(part)
            if control is None:
                tokens.extend(_unescape(part).encode("utf-8"))
            else:
                tokens.append(control)
        return tokens


class _StreamDetokenizer(Detokenizer):
    """Decodes with the tokenizer's stream; keeps the tokens that it holds back.

    A byte-fallback decoder replaces every byte of a run that is not UTF-8, also those
    of characters already returned. The stream then refuses all further tokens. In that
    case the tokens held back are decoded separately, and a new stream is begun.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, prompt_tokens: Sequence[int]):
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
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
            self._stream = DecodeStream(skip_special_tokens=True)
            # Give the new stream the token, so that it does not drop the next space as
            # at the beginning of a text. If it holds the token back, it would return
            # its text once more: then an empty stream is better.
            if not self._stream.step(self._tokenizer, token):
                self._stream = DecodeStream(skip_special_tokens=True)
        if text:
            self._held.clear()
        return text or ""

    def finish(self) -> str:
        held, self._held = self._held, []
        return self._tokenizer.decode(held, skip_special_tokens=True) if held else ""


class HuggingFaceTokenizer(Tokenizer):
    """The tokenizer of a Hugging Face folder.

    Special tokens such as a leading BOS are added by the tokenizer's post-processor. A
    chat template writes its own, so its text gets no others.

    Text in which a client spells a control token stays text. Control tokens are those
    that are special and those that the template writes, which an assistant's own turns
    may have. In a chat such text is marked before the template is filled, so that
    afterwards the tokens which have no mark are the template's; these are marked
    instead, for a second tokenizer, which has the same model and knows control tokens
    only with a mark.
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
            add_ends(self._tokenizer, settings | named)
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
        template = read_template(folder, settings, named)
        super().__init__(
            frozenset(token for token in eos if isinstance(token, int)), template
        )
        # The second tokenizer, whose model both share, and its ids that differ.
        self._plain = tokenizers.Tokenizer(self._tokenizer.model)
        for part in ("normalizer", "pre_tokenizer", "post_processor"):
            setattr(self._plain, part, getattr(self._tokenizer, part))
        known = self._tokenizer.get_added_tokens_decoder()
        written = template.text if template and parse_special == "never" else ""
        self._written = frozenset(
            one.content
            for one in known.values()
            if one.content in written and not (one.special or one.content.isspace())
        )
        control, texts, tokens = [], [], []
        for token in known.values():
            fields = token.__getstate__()
            if token.special or token.content in self._written:
                control.append(token.content)
                fields["content"] = _BEGIN + token.content
            texts.append(fields["content"])
            tokens.append(tokenizers.AddedToken(**fields))
        self._plain.add_tokens(tokens)
        ids = zip(map(self._plain.token_to_id, texts), known, strict=True)
        self._ids = {one: real for one, real in ids if one != real}
        either = "|".join(map(re.escape, sorted(control, key=len, reverse=True)))
        self._control = re.compile(f"[{_BEGIN}{_END}]|({either or '(?!)'})")
        self._parses = parse_special == "user"

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a prompt, with the post-processor's special tokens."""
        if self._parses:
            return self._tokenizer.encode(text).ids
        return self._encode_plain(text.replace(_BEGIN, ""))

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens; special tokens have none."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def detokenizer(self, prompt_tokens: Sequence[int]) -> Detokenizer:
        """Returns a decoder for the output that follows a prompt."""
        return _StreamDetokenizer(self._tokenizer, prompt_tokens)

    def _encode_chat(self, template: ChatTemplate, chat: dict[str, Any]) -> list[int]:
        if self._parses:
            text = template.render(**chat)
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        text = template.render(**self._mark(chat))
        text = self._control.sub(_exchange_marks, text)
        return self._encode_plain(text, add_special_tokens=False)

    def _mark(self, value: Any, kept: frozenset[str] = frozenset()) -> Any:
        """Returns a part of a chat with marks around control tokens not in `kept`."""
        if isinstance(value, str):
            return self._control.sub(
                lambda found: (
                    f"{_BEGIN}{found[1]}{_END}"
                    if found[1] and found[1] not in kept
                    else found[1] or ""
                ),
                value,
            )
        if isinstance(value, Mapping):
            if value.get("role") == "assistant":
                kept = self._written
            return {
                self._mark(key): self._mark(one, kept) for key, one in value.items()
            }
        is_list = isinstance(value, list | tuple)
        return [self._mark(one, kept) for one in value] if is_list else value

    def _encode_plain(self, text: str, **options: bool) -> list[int]:
        found = self._plain.encode(text, **options)
        pairs = zip(found.ids, found.special_tokens_mask, strict=True)
        return [one if added else self._ids.get(one, one) for one, added in pairs]


def _exchange_marks(match: re.Match[str]) -> str:
    """Returns a control token with a mark if it had none; without, if it had one."""
    around = match.string[max(match.start() - 1, 0) : match.end() + 1]
    is_spelled = around[0] == _BEGIN or around[-1] == _END
    return "" if match[1] is None else match[1] if is_spelled else _BEGIN + match[1]


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
