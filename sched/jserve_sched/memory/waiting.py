"""The queue: requests without a slot, by arrival, and the facts that rank them.

A queue may hold ten thousand requests. Their facts are kept in columns beside them, and
are changed where a request comes, goes, or finds more or less of its prompt in the
prefix cache; no step looks at each request.
"""

import array
import bisect
import collections
from collections.abc import Iterable, Sequence

import numpy as np

from jserve_sched.memory.ledger import KvLedger
from jserve_sched.requests.facts import Facts, fact_row
from jserve_sched.requests.request import Request

_START = Facts._fields.index("start") - 1  # its column


def _order(request: Request) -> tuple[float, str]:
    return (request.arrival_s, request.request_id)


class WaitingQueue:
    """Waiting requests, by arrival and then id. Only `Scheduler` changes it.

    A request's facts change while it waits only in `start`, or before `reread`.

    Attributes:
      num_arrived: Number of requests added so far, each counted once.
      num_returned: Number of times that a preempted request was added again.
    """

    def __init__(self, ledger: KvLedger, requests: Iterable[Request] = ()):
        self.num_arrived = 0
        self.num_returned = 0
        self._ledger = ledger
        self._requests: list[Request] = []
        self._columns = [array.array("d") for _ in Facts._fields[1:]]
        self._facts: Facts | None = None  # of now, once they are asked for
        # Requests by the content that decides how much of their prompt is cached: the
        # pages found, and the first one missing.
        self._watchers = collections.defaultdict[bytes, set[Request]](set)
        for request in requests:
            self.add(request)

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def requests(self) -> Sequence[Request]:
        """All waiting requests, in order."""
        return self._requests

    @property
    def facts(self) -> Facts:
        """Facts of all waiting requests, in order; the same until the next change."""
        if self._facts is None:
            self._facts = Facts([*self._requests], *map(np.array, self._columns))
        return self._facts

    def _place(self, request: Request) -> int:
        return bisect.bisect_left(self._requests, _order(request), key=_order)

    def add(self, request: Request) -> None:
        """Adds a request at its place."""
        self.num_arrived += request.num_preemptions == 0
        self.num_returned += request.num_preemptions > 0
        place = self._place(request)
        self._requests.insert(place, request)
        self._watch(request)
        for column, value in zip(self._columns, fact_row(request), strict=True):
            column.insert(place, value)
        self._facts = None

    def remove(self, request: Request) -> None:
        """Removes a request."""
        place = self._place(request)
        assert self._requests[place] is request
        del self._requests[place]
        self._unwatch(request)
        for column in self._columns:
            del column[place]
        self._facts = None

    def reread(self, request: Request) -> None:
        """Takes a request's facts again, but for its place."""
        place = self._place(request)
        for column, value in zip(self._columns, fact_row(request), strict=True):
            column[place] = value
        self._facts = None

    def _watch(self, request: Request) -> None:
        """Finds how much of a prompt is cached, and watches what decides on that."""
        hashes, num_found = self.look_up(request)
        for content in hashes[: num_found + 1]:
            self._watchers[content].add(request)

    def look_up(self, request: Request) -> tuple[Sequence[bytes], int]:
        """Finds how much of a prompt is cached: sets `num_shared_tokens`.

        Returns:
          The hashes of the pages that could be shared, and how many of them are cached.
        """
        page_size = self._ledger.page_size
        # The last token is always computed, since its logits are wanted.
        hashes = request.page_hashes[: (request.num_known_tokens - 1) // page_size]
        num_found = len(self._ledger.find_prefix(hashes))
        request.num_shared_tokens = num_found * page_size
        return hashes, num_found

    def _unwatch(self, request: Request) -> None:
        num_watched = request.num_shared_tokens // self._ledger.page_size + 1
        for content in request.page_hashes[:num_watched]:
            if watchers := self._watchers.get(content):
                watchers.discard(request)
                if not watchers:
                    del self._watchers[content]

    def refresh(self) -> None:
        """Looks again at requests of which other pages are in the cache now."""
        changed = self._ledger.take_changes()
        watched = [self._watchers[one] for one in changed & self._watchers.keys()]
        for request in set[Request]().union(*watched):
            self._unwatch(request)
            self._watch(request)
            self._columns[_START][self._place(request)] = request.num_shared_tokens
            self._facts = None
