"""Lengths of answers that ended, by service class and length of the prompt.

The one idea: an answer that `max_tokens` cut would have been longer, nobody knows by
how much. Its weight goes to the longer ones that are known, as in Kaplan and Meier's
estimator; the longest keeps what is left.

Everything here is ours: of the paper's length prediction (arXiv 2504.14966) only that
there is one is known. `N` is the number of answers that a history holds.
"""

import collections
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jserve_sched.request import FinishReason, Request

MAX_GROUPS = 512  # histories kept; those without news for longest are dropped
_HALF_LIVES = 4  # of an answer's weight, until it leaves the history
_EVERY = 8  # answers between two summaries of a history
_NEWS = 0.25  # relative change that is worth estimating anew for


class Summary(NamedTuple):
    """What is said of a history, in tokens.

    Attributes:
      centre: an answer's length.
      spread: how far answers are from it; 0 where that is not asked.
    """

    centre: float
    spread: float


Summarise = Callable[[np.ndarray, np.ndarray], Summary]  # of lengths and shares `[N]`


class LengthHistory:
    """The last answers of a group; each weighs less the more came after it."""

    def __init__(self, memory: int):
        """Makes an empty one.

        Args:
          memory: most answers held.
        """
        self._tokens = np.zeros(memory, np.int32)
        self._is_cut = np.zeros(memory, bool)
        self.num_added = 0

    def add(self, tokens: int, *, is_cut: bool) -> None:
        """Takes an answer in; a cut one had at least so many tokens."""
        place = self.num_added % len(self._tokens)
        self._tokens[place] = tokens
        self._is_cut[place] = is_cut
        self.num_added += 1

    def distribution(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns lengths `[N]`, ascending, and the share of each, 1 in all."""
        memory = len(self._tokens)
        num_held = min(self.num_added, memory)
        ages = (self.num_added - 1 - np.arange(num_held)) % memory
        weights = 0.5 ** (ages * (_HALF_LIVES / memory))
        # Of equal lengths the cut ones come last: they were longer.
        order = np.lexsort((self._is_cut[:num_held], self._tokens[:num_held]))
        weights = weights[order]
        as_long = np.cumsum(weights[::-1])[::-1]
        go_on = np.where(self._is_cut[order], 1.0, 1.0 - weights / as_long)
        go_on[-1] = 0.0
        shares = -np.diff(np.cumprod(go_on), prepend=1.0)
        return self._tokens[order], shares


class _Group:
    """A history with its summary, which may be a few answers old."""

    def __init__(self, memory: int):
        self._history = LengthHistory(memory)
        self._told = 0.0
        self.summary: Summary | None = None

    def add(
        self, tokens: int, *, is_cut: bool, least: int, summarise: Summarise
    ) -> bool:
        """Takes an answer in; tells whether the summary is news."""
        history = self._history
        history.add(tokens, is_cut=is_cut)
        num_more = history.num_added - least
        if num_more < 0 or num_more % _EVERY:
            return False
        self.summary = summarise(*history.distribution())
        if abs(self.summary.centre - self._told) <= _NEWS * self._told:
            return False
        self._told = self.summary.centre
        return True


class LengthGroups:
    """Histories by class and band of prompt length, by class, and of all answers.

    A request is judged by the first of these with enough answers, so a rare kind is
    judged by its class. Bands are powers of two of prompt tokens.
    """

    def __init__(self, summarise: Summarise, *, least: int, memory: int):
        """Makes empty ones.

        Args:
          summarise: what to say of a history.
          least: answers before a history is believed.
          memory: most answers in each.

        Raises:
          ValueError: if a number is out of range.
        """
        if not 1 <= memory <= 65536:
            raise ValueError(f"memory={memory} is not in 1..65536")
        if not 1 <= least <= memory:
            raise ValueError(f"least={least} is not in 1..memory={memory}")
        self._summarise = summarise
        self._least = least
        self._memory = memory
        self._groups: collections.OrderedDict[tuple[str | int, ...], _Group] = (
            collections.OrderedDict()
        )

    def __len__(self) -> int:
        return len(self._groups)

    def find(self, request: Request) -> Summary | None:
        """Returns what is known of answers to requests like this one."""
        for key in _keys(request):
            group = self._groups.get(key)
            if group is not None and group.summary is not None:
                return group.summary
        return None

    def learn(self, request: Request) -> bool:
        """Takes a request that ended into account, if it ended of itself or was cut.

        Without stop tokens it did neither: it was as long as was asked for.

        Returns:
          Whether what is known has changed much.
        """
        reason = request.finish_reason
        if not request.stop_token_ids or reason is FinishReason.CANCELLED:
            return False
        is_news = False
        for key in _keys(request):
            if key not in self._groups:
                self._groups[key] = _Group(self._memory)
            self._groups.move_to_end(key)
            is_news |= self._groups[key].add(
                len(request.output_tokens),
                is_cut=reason is FinishReason.LENGTH,
                least=self._least,
                summarise=self._summarise,
            )
        while len(self._groups) > MAX_GROUPS:
            self._groups.popitem(last=False)
        return is_news


def _keys(request: Request) -> tuple[tuple[str | int, ...], ...]:
    """Returns the names of a request's groups, the closest first."""
    name, band = request.service_class, len(request.prompt_tokens).bit_length()
    return ((name, band), (name,), ())
