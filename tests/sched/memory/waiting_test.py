import numpy as np

from jserve_sched.memory.ledger import KvLedger, chain_hashes
from jserve_sched.memory.waiting import WaitingQueue
from jserve_sched.requests.facts import facts_of
from jserve_sched.requests.request import Request
from jserve_sched.requests.slo import Slo
from tests.fakes import make_request


def test_facts_stay_beside_their_requests() -> None:
    """They are those of a new look at each request and at the prefix cache."""
    rng = np.random.default_rng(0)
    ledger = KvLedger(num_pages=8, page_size=4)
    queue = WaitingQueue(ledger)
    inside: list[Request] = []
    stems = rng.integers(0, 9, (2, 50))
    held: list[int] = []
    num_shared = 0
    for _ in range(300):
        if inside and rng.random() < 0.4:
            queue.remove(inside.pop(int(rng.integers(len(inside)))))
        else:
            stem, length = rng.integers(2), int(rng.integers(1, 50))
            request = make_request(
                prompt=stems[stem, :length],
                max_tokens=4,
                arrival_s=float(rng.integers(0, 9)),  # many come at once
                slo=Slo(ttlt_s=float(rng.uniform(1, 9))),
                guard=bool(rng.random() < 0.2),
            )
            request.page_hashes = chain_hashes(request.prompt_tokens, 4)
            queue.add(request)
            inside.append(request)
        # A page comes into the cache, or one or more are held no longer and evicted.
        if len(held) == ledger.num_pages or rng.random() < 0.2:
            ledger.release(held)
            ledger.release(ledger.allocate(int(rng.integers(1, 8))))
            held = []
        (page,) = ledger.allocate(1)
        held.append(page)
        hashes = chain_hashes(stems[int(rng.integers(2))].astype(np.int32), 4)
        ledger.publish(page, hashes[len(ledger.find_prefix(hashes))])
        queue.refresh()
        expected = sorted(inside, key=lambda one: (one.arrival_s, one.request_id))
        assert list(queue.requests) == expected
        assert len(queue) == len(expected)
        for one in expected:
            pages = ledger.find_prefix(one.page_hashes)
            most = one.num_prompt_tokens - 1  # the last token is always computed
            assert one.num_shared_tokens == min(len(pages) * 4, most // 4 * 4)
            num_shared += one.num_shared_tokens > 0
        facts, again = queue.facts, facts_of(expected)
        assert list(facts.requests) == expected
        for kept, seen in zip(facts[1:], again[1:], strict=True):
            assert kept.tolist() == seen.tolist()
    assert num_shared > 1000
