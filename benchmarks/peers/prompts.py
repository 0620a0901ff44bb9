"""Prompts that have the same length as text and as token ids.

The one idea: `transformers serve` takes text only. A word that the tokenizer
knows whole, with its leading space, is one token wherever it stands; so text
made of such words has as many tokens as words, for every server alike.
"""

import pathlib

import numpy as np
import tokenizers

_SPACE = "\u0120"  # how a byte-level BPE spells a leading space
_MAX_CHECKED = 8000


class WordPrompts:
    """Draws prompts from the whole words of a model folder's tokenizer."""

    def __init__(self, folder: pathlib.Path):
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer = tokenizer
        found = sorted(
            (token, text)
            for text, token in tokenizer.get_vocab().items()
            if text.startswith(_SPACE) and text[1:].isascii() and text[1:].isalpha()
        )
        words = [(token, " " + text[1:]) for token, text in found[:_MAX_CHECKED]]
        self._words = [
            (token, word)
            for token, word in words
            if tokenizer.encode(word).ids == [token]
        ]

    def draw(
        self, num_prompts: int, num_tokens: int, seed: tuple[int, ...]
    ) -> tuple[list[str], list[list[int]]]:
        """Returns distinct prompts as texts and as token ids.

        Raises:
          ValueError: if the tokenizer splits a text otherwise than expected.
        """
        generator = np.random.default_rng(seed)
        texts, ids = [], []
        for _ in range(num_prompts):
            picks = generator.integers(len(self._words), size=num_tokens)
            text = "".join(self._words[pick][1] for pick in picks)
            tokens = [self._words[pick][0] for pick in picks]
            if self._tokenizer.encode(text).ids != tokens:
                raise ValueError(f"the tokenizer does not keep the words of {text!r}")
            texts.append(text)
            ids.append(tokens)
        return texts, ids
