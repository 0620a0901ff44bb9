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
      search_s: Seconds that the search took; 0 where no clock was at hand.
    """

    order: tuple[str, ...]
    made_s: float
    epoch: int
    search_s: float = dataclasses.field(default=0.0, compare=False)

    @functools.cached_property
    def turns(self) -> Mapping[str, int]:
        """The place of each request in the order, by id."""
        return {name: turn for turn, name in enumerate(self.order)}


@dataclasses.dataclass(kw_only=True, slots=True)
class SearchTotals:
    """What the searches for outlooks took since start."""

    num_searches: int = 0
    search_s: float = 0.0

    def add(self, outlook: Outlook) -> None:
        """Counts one search."""
        self.num_searches += 1
        self.search_s += outlook.search_s
