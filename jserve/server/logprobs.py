"""Log-probabilities of tokens in the two forms of OpenAI's API."""

from collections.abc import Callable, Sequence
from typing import Any

from jserve.records.events import TokenLogprobs

_LEAST = -9999.0  # JSON has no infinity

Noted = tuple[int, TokenLogprobs | None]
"""A token, and the log-probabilities at it; the first of a prompt has none."""


class LogprobsWriter:
    """Writes the log-probabilities of one output, all at once or token by token."""

    def __init__(self, token_bytes: Callable[[int], bytes], *, is_chat: bool):
        """Makes a writer.

        Args:
          token_bytes: Returns the UTF-8 of a token, which may be part of a character.
        """
        self._token_bytes = token_bytes
        self._is_chat = is_chat
        self._offset = 0  # characters of the tokens written so far

    def write(self, noted: Sequence[Noted]) -> dict[str, Any]:
        """Returns the field `logprobs` of the next tokens."""
        if self._is_chat:
            content = [
                self._entry(token, found.drawn)
                | {"top_logprobs": list(map(self._entry, found.top_tokens, found.top))}
                for token, found in noted
                if found is not None
            ]
            return {"content": content, "refusal": None}
        texts = [self._text(token) for token, _ in noted]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        tops: list[dict[str, float] | None] = []
        for text, (_, found) in zip(texts, noted, strict=True):
            if found is None:
                tops.append(None)
                continue
            names = map(self._text, found.top_tokens)
            top = zip(names, found.top, strict=True)
            shown = {one: max(value, _LEAST) for one, value in top}
            tops.append({**shown, text: shown.get(text, max(found.drawn, _LEAST))})
        return {
            "text_offset": offsets,
            "token_logprobs": [
                found and max(found.drawn, _LEAST) for _, found in noted
            ],
            "tokens": texts,
            "top_logprobs": tops,
        }

    def of_prompt(self, noted: Sequence[Noted]) -> list[dict[str, Any] | None]:
        """Returns vLLM's `prompt_logprobs`: at each token its own and the likeliest."""
        return [found and self._by_token(token, found) for token, found in noted]

    def _by_token(self, token: int, found: TokenLogprobs) -> dict[str, Any]:
        own = (token, found.drawn, found.rank)
        top = zip(
            found.top_tokens, found.top, range(1, len(found.top) + 1), strict=True
        )
        return {
            str(one): {
                "logprob": max(value, _LEAST),
                "rank": rank,
                "decoded_token": self._text(one),
            }
            for one, value, rank in (*top, own)
        }

    def _text(self, token: int) -> str:
        return self._token_bytes(token).decode("utf-8", "replace")

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._text(token),
            "logprob": max(logprob, _LEAST),
            "bytes": list(self._token_bytes(token)),
        }
