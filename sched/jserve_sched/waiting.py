"""The queue: requests without a slot, by arrival, and what ranking asks of all of them.

The one idea: a queue may hold ten thousand, so what a policy needs to know of every one
stands in lists beside the requests, and becomes an array without touching them.
"""

import bisect
from collections.abc import Iterable, Sequence

import numpy as np

from jserve_sched.request import Request


def _order(request: Request) -> tuple[float, str]:
    return (request.arrival_s, request.request_id)


class WaitingQueue:
    """Waiting requests, by arrival and then id. Only `Scheduler` changes it."""

    def __init__(self, requests: Iterable[Request] = ()):
        self._requests: list[Request] = []
        self._first_deadlines_s: list[float] = []
        self._tokens: list[int] = []
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
        place = bisect.bisect_left(self._requests, _order(request), key=_order)
        self._requests.insert(place, request)
        self._first_deadlines_s.insert(place, request.first_deadline_s)
        self._tokens.insert(place, request.num_known)

    def remove(self, request: Request) -> None:
        """Takes a request out that is in."""
        place = bisect.bisect_left(self._requests, _order(request), key=_order)
        assert self._requests[place] is request
        del self._requests[place]
        del self._first_deadlines_s[place]
        del self._tokens[place]

    def first_deadlines_s(self) -> np.ndarray:
        """Returns when each one's first token is wanted, clock seconds, in order."""
        return np.array(self._first_deadlines_s, np.float64)

    def tokens(self) -> np.ndarray:
        """Returns the tokens to compute of each, in order, float64."""
        return np.array(self._tokens, np.float64)
