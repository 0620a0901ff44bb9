"""The queue: requests without a slot, by arrival, and the facts that rank them.

A queue may hold ten thousand requests. Their facts stand in lists beside them, so that
they become an array without a look at each request.
"""

import bisect
from collections.abc import Iterable, Sequence

import numpy as np

from jserve_sched.requests.request import Request


def _order(request: Request) -> tuple[float, str]:
    return (request.arrival_s, request.request_id)


class WaitingQueue:
    """Waiting requests, by arrival and then id. Only `Scheduler` changes it.

    A request's facts do not change while it waits.

    Attributes:
      num_arrived: Number of requests added so far, each counted once.
      num_returned: Number of times that a preempted request was added again.
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
        """All waiting requests, in order."""
        return self._requests

    def add(self, request: Request) -> None:
        """Adds a request at its place."""
        self.num_arrived += request.num_preemptions == 0
        self.num_returned += request.num_preemptions > 0
        place = bisect.bisect_left(self._requests, _order(request), key=_order)
        self._requests.insert(place, request)
        facts = (
            request.pace_s,
            request.deadline_s,
            request.num_known_tokens,
            request.guard,
        )
        for column, value in zip(self._facts, facts, strict=True):
            column.insert(place, value)

    def remove(self, request: Request) -> None:
        """Removes a request."""
        place = bisect.bisect_left(self._requests, _order(request), key=_order)
        assert self._requests[place] is request
        del self._requests[place]
        for column in self._facts:
            del column[place]

    def facts(self, first: int = 0) -> np.ndarray:
        """Returns facts `[4, waiting - first]`, float64, of all but `first` requests.

        They are `pace_s` and `deadline_s` in clock seconds, the tokens to compute, and
        whether the request is guarded.
        """
        return np.array([column[first:] for column in self._facts], np.float64)
