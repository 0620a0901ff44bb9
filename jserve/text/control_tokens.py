"""Keeps text in which a client spells a control token from becoming one.

Control tokens are those that are special and those that the chat template writes. In a
chat, text that spells one is marked before the template is filled. Those without a mark
are then the template's own; these are marked instead, for a second tokenizer, which has
the same model and knows control tokens only with a mark.
"""

import re
from collections.abc import Mapping
from typing import Any

import tokenizers

_BEGIN, _END = "\ufdd0", "\ufdd1"  # noncharacters around what clients spell


class ControlTokens:
    """The control tokens of a tokenizer, and the tokenizer that needs their marks."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, written: str):
        """Makes the second tokenizer.

        Args:
          written: What the chat template writes itself.
        """
        self._plain = tokenizers.Tokenizer(tokenizer.model)  # which both share
        for part in ("normalizer", "pre_tokenizer", "post_processor"):
            setattr(self._plain, part, getattr(tokenizer, part))
        known = tokenizer.get_added_tokens_decoder()
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
        self._pattern = re.compile(f"[{_BEGIN}{_END}]|({either or '(?!)'})")

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a client's text, with those of the post-processor."""
        return self._encode(text.replace(_BEGIN, ""))

    def mark(self, value: Any, kept: frozenset[str] = frozenset()) -> Any:
        """Returns a part of a chat with marks around control tokens not in `kept`.

        An assistant's turns may have those that its model shows, such as <think>.
        """
        if isinstance(value, str):
            return self._pattern.sub(
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
            return {self.mark(key): self.mark(one, kept) for key, one in value.items()}
        is_list = isinstance(value, list | tuple)
        return [self.mark(one, kept) for one in value] if is_list else value

    def encode_marked(self, text: str) -> list[int]:
        """Returns the ids of a template filled with a chat that `mark` returned."""
        text = self._pattern.sub(_exchange_marks, text)
        return self._encode(text, add_special_tokens=False)

    def _encode(self, text: str, **options: bool) -> list[int]:
        found = self._plain.encode(text, **options)
        pairs = zip(found.ids, found.special_tokens_mask, strict=True)
        return [one if added else self._ids.get(one, one) for one, added in pairs]


def _exchange_marks(match: re.Match[str]) -> str:
    """Returns a control token with a mark if it had none; without, if it had one."""
    around = match.string[max(match.start() - 1, 0) : match.end() + 1]
    is_spelled = around[0] == _BEGIN or around[-1] == _END
    return "" if match[1] is None else match[1] if is_spelled else _BEGIN + match[1]
