"""Holders: the requests that run, each with a slot and KV pages."""

import bisect
from collections.abc import Collection, Sequence

from jserve_sched.memory.ledger import KvLedger, chain_hashes
from jserve_sched.requests.request import Request


class Holders:
    """Requests that hold a slot, by admission. Only `Scheduler` changes it."""

    def __init__(self, ledger: KvLedger, num_slots: int):
        self._ledger = ledger
        # Not by id: a client may use one again while the steps of a cancelled request
        # are in flight.
        self._requests: dict[int, Request] = {}
        self._free_slots = list(range(num_slots))[::-1]

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def requests(self) -> Collection[Request]:
        """All of them, by admission."""
        return self._requests.values()

    @property
    def num_free_slots(self) -> int:
        """Slots that no request holds."""
        return len(self._free_slots)

    def admit(self, request: Request, num_cached_tokens: int) -> None:
        """Gives a slot, and the full pages that hold `num_cached_tokens` already."""
        num_shared = num_cached_tokens // self._ledger.page_size
        shared = self._ledger.find_prefix(request.page_hashes[:num_shared])
        assert len(shared) == num_shared, "a page the plan relied on is gone"
        self._ledger.share(shared)
        request.pages = shared
        request.num_published_pages = num_shared
        request.slot = self._free_slots.pop()
        self._requests[id(request)] = request

    def reserve(self, request: Request, num_tokens: int) -> None:
        """Gives the pages that a request lacks for `num_tokens` in all."""
        missing = self._ledger.pages_for(num_tokens) - len(request.pages)
        if missing > 0:
            request.pages.extend(self._ledger.allocate(missing))

    def release(self, request: Request) -> None:
        """Takes the slot and the pages back."""
        assert request.slot is not None
        self._ledger.release(request.pages)
        request.pages = []
        request.num_published_pages = 0
        self._free_slots.append(request.slot)
        request.slot = None
        del self._requests[id(request)]

    def publish(self, request: Request, num_written: int) -> None:
        """Lets others find the pages that are full of written, known tokens."""
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

    def num_steps_with_pages(self, requests: Sequence[Request], most: int) -> int:
        """Returns how many decode steps, up to `most`, there are pages for."""
        pages_for = self._ledger.pages_for

        def need(num_steps: int) -> int:
            return sum(
                max(pages_for(one.num_dispatched + num_steps) - len(one.pages), 0)
                for one in requests
            )

        free = self._ledger.num_available
        if need(most) <= free:  # mostly so
            return most
        return bisect.bisect_right(range(1, most + 1), free, key=need)
