"""Outlook: in which turn requests should run, as a search over many steps found it.

The one idea: finding a good order takes longer than a step and stays good for many, so
it is found now and then, kept beside the queue, and looked at in every step.
"""

import dataclasses
import functools
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlook:
    """An order of waiting requests, in batches that should run together.

    Attributes:
      order: request ids, by planned turn.
      batches: the batch of each, counted from 0, in the order of `order`.
      cap: most requests that should run at once; None if all may.
      made_s: clock seconds of the snapshot that it was made from.
      epoch: `SchedulerView.epoch` of that snapshot.
      num_proposals: changes of the order that were tried.
      start_goal: the objective of the best order that the search started from, 1/s.
      goal: the objective of this order, 1/s; never less.
      search_s: how long the search took, seconds; None where no clock was at hand.
    """

    order: tuple[str, ...]
    batches: tuple[int, ...]
    cap: int | None
    made_s: float
    epoch: int
    num_proposals: int = 0
    start_goal: float = 0.0
    goal: float = 0.0
    search_s: float | None = dataclasses.field(default=None, compare=False)

    @property
    def gain(self) -> float:
        """How much better the objective is than the start's, relative; 0 or more."""
        return self.goal / self.start_goal - 1.0 if self.start_goal > 0.0 else 0.0

    @functools.cached_property
    def turns(self) -> Mapping[str, int]:
        """The place of each request in the order, by id."""
        return {name: turn for turn, name in enumerate(self.order)}

    def without(self, name: str) -> "Outlook":
        """Returns it without a request; itself if that is not in it."""
        if name not in self.turns:
            return self
        turn = self.turns[name]
        return dataclasses.replace(
            self,
            order=self.order[:turn] + self.order[turn + 1 :],
            batches=self.batches[:turn] + self.batches[turn + 1 :],
        )


@dataclasses.dataclass(kw_only=True, slots=True)
class SearchTotals:
    """What the searches for outlooks took and gave, since start.

    Attributes:
      num_searches: outlooks made.
      num_proposals: changes of an order that were tried.
      search_s: seconds spent, as far as they were measured.
      gain: sum of the outlooks' gains.
    """

    num_searches: int = 0
    num_proposals: int = 0
    search_s: float = 0.0
    gain: float = 0.0

    def add(self, outlook: Outlook) -> None:
        """Counts one search."""
        self.num_searches += 1
        self.num_proposals += outlook.num_proposals
        self.search_s += outlook.search_s or 0.0
        self.gain += outlook.gain
