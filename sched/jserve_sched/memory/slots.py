"""Holders: the running requests, each with a slot and KV pages."""

from collections.abc import Collection

from jserve_sched.memory.ledger import KvLedger, chain_hashes
from jserve_sched.requests.request import Request


class Holders:
    """Requests that hold a slot, in order of admission; changed by `Scheduler` only."""

    def __init__(self, ledger: KvLedger, num_slots: int):
        self._ledger = ledger
        # The keys are object identities, not request ids: a client may reuse an id
        # while steps of its cancelled request are in flight.
        self._requests: dict[int, Request] = {}
        self._free_slots = list(range(num_slots))[::-1]

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def requests(self) -> Collection[Request]:
        """All holders, in order of admission."""
        return self._requests.values()

    @property
    def num_free_slots(self) -> int:
        """Number of slots without a holder."""
        return len(self._free_slots)

    def admit(self, request: Request, num_cached_tokens: int) -> None:
        """Gives a request a slot, and the cached pages of its first tokens."""
        num_shared = num_cached_tokens // self._ledger.page_size
        shared = self._ledger.find_prefix(request.page_hashes[:num_shared])
        assert len(shared) == num_shared, "a page the plan relied on is gone"
        self._ledger.share(shared)
        request.pages = shared
        request.num_published_pages = num_shared
        request.slot = self._free_slots.pop()
        self._requests[id(request)] = request

    def reserve(self, request: Request, num_tokens: int) -> None:
        """Gives a request the pages that it lacks for `num_tokens` in total."""
        missing = self._ledger.pages_for(num_tokens) - len(request.pages)
        if missing > 0:
            request.pages.extend(self._ledger.allocate(missing))

    def release(self, request: Request) -> None:
        """Takes a request's slot and pages back."""
        assert request.slot is not None
        self._ledger.release(request.pages)
        request.pages = []
        request.num_published_pages = 0
        self._free_slots.append(request.slot)
        request.slot = None
        del self._requests[id(request)]

    def publish(self, request: Request, num_written: int) -> None:
        """Makes a request's full pages findable, if their tokens are written."""
        if not self._ledger.enable_prefix_caching:
            return
        page_size = self._ledger.page_size
        num_full = num_written // page_size
        if num_full <= request.num_published_pages:
            return
        known = request.page_hashes
        if num_full > len(known):
            new = request.known_tokens(len(known) * page_size, num_full * page_size)
            known.extend(chain_hashes(new, page_size, known))
        for index in range(request.num_published_pages, num_full):
            self._ledger.publish(request.pages[index], known[index])
        request.num_published_pages = num_full
