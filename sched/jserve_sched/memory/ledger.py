"""Accounting of KV pages: the holders and the content of each page.

A page is named by the hash of *all* tokens up to its end, so equal prefixes find equal
pages. A page that is no longer held keeps its content, and is handed out again only
when no empty page is left (least recently released first).

    free        without content that could be reused
    evictable   content known by hash, without a holder
    held        by one or more requests (`num_holders`)
"""

import collections
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np


def chain_hashes(
    tokens: np.ndarray, page_size: int, known: Sequence[bytes] = ()
) -> list[bytes]:
    """Returns the content hash of each full page of `tokens`.

    Args:
      tokens: `[n]` int32, the tokens after the pages in `known`.
      known: Hashes of the pages before, of which only the last is used.
    """
    parent = known[-1] if known else b""
    hashes = []
    data = np.ascontiguousarray(tokens, np.int32)
    for start in range(0, len(data) - page_size + 1, page_size):
        digest = hashlib.blake2b(parent, digest_size=16)
        digest.update(data[start : start + page_size].tobytes())
        parent = digest.digest()
        hashes.append(parent)
    return hashes


class KvLedger:
    """Free, held and reusable pages of one KV pool; `page_size` is in tokens."""

    def __init__(
        self, *, num_pages: int, page_size: int, enable_prefix_caching: bool = True
    ):
        if num_pages < 1:
            raise ValueError(f"num_pages={num_pages} is below 1")
        if page_size < 1:
            raise ValueError(f"page_size={page_size} is below 1")
        self.num_pages = num_pages
        self.page_size = page_size
        self.enable_prefix_caching = enable_prefix_caching
        self._free: collections.deque[int] = collections.deque(range(num_pages))
        self._evictable: collections.OrderedDict[int, None] = collections.OrderedDict()
        self._num_holders = [0] * num_pages
        self._hash_of: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._changed: set[bytes] = set()

    @property
    def num_available(self) -> int:
        """Pages that can be handed out."""
        return len(self._free) + len(self._evictable)

    def pages_for(self, num_tokens: int) -> int:
        """Returns the number of pages that hold `num_tokens`."""
        return -(-num_tokens // self.page_size)

    def find_prefix(self, hashes: Sequence[bytes]) -> list[int]:
        """Returns the pages that already hold the longest prefix of `hashes`."""
        pages: list[int] = []
        for one in hashes:
            page = self._page_of.get(one)
            if page is None:
                break
            pages.append(page)
        return pages

    def take_changes(self) -> set[bytes]:
        """Returns the content that came or went since this was last asked."""
        changed, self._changed = self._changed, set()
        return changed

    def num_evictable_among(self, pages: Iterable[int]) -> int:
        """Returns how many of `pages` have no holder, and count as available."""
        return sum(page in self._evictable for page in pages)

    def num_released_by(self, pages: Iterable[int]) -> int:
        """Returns how many of `pages` become available if one holder releases them."""
        return sum(self._num_holders[page] == 1 for page in pages)

    def share(self, pages: Sequence[int]) -> None:
        """Adds a holder to each page; the pages' content must be known."""
        for page in pages:
            assert self._hash_of[page] is not None, f"page {page} has no content"
            self._evictable.pop(page, None)
            self._num_holders[page] += 1

    def allocate(self, num_pages: int) -> list[int]:
        """Hands out pages: empty pages first, then the least recently released."""
        assert num_pages <= self.num_available, f"{num_pages} pages are not available"
        pages = []
        for _ in range(num_pages):
            if self._free:
                page = self._free.popleft()
            else:
                page, _ = self._evictable.popitem(last=False)
                content = self._hash_of[page]
                assert content is not None
                del self._page_of[content]
                self._changed.add(content)
                self._hash_of[page] = None
            self._num_holders[page] = 1
            pages.append(page)
        return pages

    def publish(self, page: int, content: bytes) -> None:
        """Makes a written page findable by its hash, unless another page has it."""
        if not self.enable_prefix_caching:
            return
        assert self._num_holders[page] > 0, f"page {page} has no holder"
        if content not in self._page_of and self._hash_of[page] is None:
            self._page_of[content] = page
            self._changed.add(content)
            self._hash_of[page] = content

    def release(self, pages: Sequence[int]) -> None:
        """Removes a holder from each page; the last pages are reused first."""
        for page in reversed(pages):
            holders = self._num_holders[page]
            assert holders > 0, f"page {page} is released without a holder"
            self._num_holders[page] = holders - 1
            if holders == 1:
                if self._hash_of[page] is None:
                    self._free.append(page)
                else:
                    self._evictable[page] = None
