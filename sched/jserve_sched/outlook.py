"""Outlook: in which turn requests should run, as a search over many steps found it.

Finding a good order takes longer than a step and stays good for many, so it is found
now and then, kept beside the queue, and looked at in every step.
"""

import dataclasses
import functools
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlook:
    """An order of waiting requests.

    Attributes:
      order: Request ids, by planned turn.
      made_s: Clock seconds of the snapshot that it was made from.
      epoch: `SchedulerView.epoch` of that snapshot.
      num_proposals: Changes of the order that were tried.
      gain: How much better the objective is than the start's, relative; 0 or more.
      search_s: Seconds that the search took; None where no clock was at hand.
    """

    order: tuple[str, ...]
    made_s: float
    epoch: int
    num_proposals: int = 0
    gain: float = 0.0
    search_s: float | None = dataclasses.field(default=None, compare=False)

    @functools.cached_property
    def turns(self) -> Mapping[str, int]:
        """The place of each request in the order, by id."""
        return {name: turn for turn, name in enumerate(self.order)}


@dataclasses.dataclass(kw_only=True, slots=True)
class SearchTotals:
    """What the searches for outlooks took and gave, since start.

    Attributes:
      num_searches: Outlooks made.
      num_proposals: Changes of an order that were tried.
      search_s: Seconds spent, as far as they were measured.
      gain: Sum of the outlooks' gains.
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
