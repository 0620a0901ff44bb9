import numpy as np

from jserve_sched.memory.ledger import KvLedger, chain_hashes


def test_a_hash_names_all_tokens_up_to_the_end_of_its_page() -> None:
    tokens = np.arange(24, dtype=np.int32)
    whole = chain_hashes(tokens, 8)
    assert len(whole) == 3
    assert chain_hashes(tokens[:23], 8) == whole[:2]
    assert chain_hashes(tokens[8:], 8, whole[:1]) == whole[1:]
    other = tokens.copy()
    other[0] = 99
    assert not set(chain_hashes(other, 8)) & set(whole)


def test_released_content_is_found_until_its_page_is_needed() -> None:
    ledger = KvLedger(num_pages=3, page_size=2)
    hashes = chain_hashes(np.arange(6, dtype=np.int32), 2)
    pages = ledger.allocate(3)
    for page, content in zip(pages, hashes, strict=True):
        ledger.publish(page, content)
    ledger.release(pages)
    assert ledger.find_prefix(hashes) == pages
    assert ledger.num_evictable_among(pages) == 3
    ledger.allocate(1)  # the end of the prefix goes first
    assert ledger.find_prefix(hashes) == pages[:2]
