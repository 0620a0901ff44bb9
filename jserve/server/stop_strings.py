"""Finds stop strings in text that arrives in pieces.

Only text that might still become a stop string is held back: the longest end of the
text with which a stop string begins.
"""

import re
from collections.abc import Sequence


class StopFinder:
    """Finds the stop strings of one output.

    Attributes:
      found: The stop string that was found; text after it is dropped.
    """

    def __init__(
        self,
        stops: Sequence[str],
        *,
        keep_stop: bool = False,
        hidden: Sequence[str] = (),
    ):
        """Starts watching.

        Args:
          keep_stop: Whether the stop string is part of the text.
          hidden: What is left out of the text, but may be part of a stop string.
        """
        self._stops = tuple(stops)
        self._keep_stop = keep_stop
        self._hides = bool(hidden)
        self._hidden = re.compile("|".join(map(re.escape, hidden)) or "(?!)")
        self._held = ""
        self.found: str | None = None

    def hide(self, text: str) -> str:
        """Returns a piece of text without what is hidden; stops are not looked for."""
        return self._hidden.sub("", text) if self._hides else text

    def push(self, text: str) -> str:
        """Takes a piece of text; returns the text that is certain to be shown."""
        if not self._stops:
            return self.hide(text)
        if self.found is not None:
            return ""
        text = self._held + text
        found = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := text.find(stop)) >= 0
        ]
        if found:
            # The one that ends first, as if the text had arrived letter by letter.
            end, start, self.found = min(found)
            self._held = ""
            shown = self._hidden.sub("", text[:start])
            return shown + text[start:end] if self._keep_stop else shown
        cut = min(self._possible_start(text, stop) for stop in self._stops)
        self._held = text[cut:]
        return self._hidden.sub("", text[:cut])

    def flush(self) -> str:
        """Returns the text held back, when the output has ended."""
        text, self._held = self._held, ""
        return self._hidden.sub("", text)

    @staticmethod
    def _possible_start(text: str, stop: str) -> int:
        """Returns the start of the end of `text` with which `stop` begins.

        It is the length of `text` if there is none.
        """
        start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
        while start >= 0:
            if stop.startswith(text[start:]):
                return start
            start = text.find(stop[0], start + 1)
        return len(text)
