"""The queue: requests without a slot, by arrival, and what ranking asks of all of them.

A queue may hold ten thousand: the facts that rank them stand in lists beside the
requests, and become an array without touching them.
"""

import bisect
from collections.abc import Iterable, Sequence

import numpy as np

from jserve_sched.requests.request import Request


def _order(request: Request) -> tuple[float, str]:
    return (request.arrival_s, request.request_id)


class WaitingQueue:
    """Waiting requests, by arrival and then id. Only `Scheduler` changes it.

    The facts of a request that is in do not change.

    Attributes:
      num_arrived: Requests added so far, each once.
      num_returned: Times that one was added again, after it was preempted.
    """

    def __init__(self, requests: Iterable[Request] = ()):
        self.num_arrived = 0
        self.num_returned = 0
        self._requests: list[Request] = []
        self._facts: tuple[list[float], ...] = ([], [], [], [])
        for request in requests:
            self.add(request)

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def requests(self) -> Sequence[Request]:
        """All of them, in order."""
        return self._requests

    def add(self, request: Request) -> None:
        """Takes a request in, at its place."""
        self.num_arrived += request.num_preemptions == 0
        self.num_returned += request.num_preemptions > 0
        place = bisect.bisect_left(self._requests, _order(request), key=_order)
        self._requests.insert(place, request)
        facts = (
            request.pace_s,
            request.deadline_s,
            request.num_known,
            request.guard,
        )
        for column, value in zip(self._facts, facts, strict=True):
            column.insert(place, value)

    def remove(self, request: Request) -> None:
        """Takes a request out that is in."""
        place = bisect.bisect_left(self._requests, _order(request), key=_order)
        assert self._requests[place] is request
        del self._requests[place]
        for column in self._facts:
            del column[place]

    def facts(self, first: int = 0) -> np.ndarray:
        """Returns `[4, waiting - first]` float64, without the `first` requests.

        Each one's `pace_s` and `deadline_s`, clock seconds; its tokens to compute;
        whether it is guarded.
        """
        return np.array([column[first:] for column in self._facts], np.float64)
