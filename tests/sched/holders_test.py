import pytest

from fakes import make_request
from jserve_sched.holders import Holders
from jserve_sched.ledger import KvLedger
from jserve_sched.request import Request

PAGE = 4


def holders(num_pages: int = 10) -> tuple[Holders, KvLedger]:
    ledger = KvLedger(num_pages=num_pages, page_size=PAGE, enable_prefix_caching=False)
    return Holders(ledger, 3), ledger


def decoding(made: Holders, num_tokens: int) -> Request:
    request = make_request(num_tokens, 50)
    made.admit(request, 0)
    made.reserve(request, num_tokens)
    request.num_dispatched = num_tokens
    return request


def test_slots_and_pages_come_and_go_together() -> None:
    made, ledger = holders()
    first, second = decoding(made, 5), decoding(made, 9)
    assert (len(made), made.num_free_slots, ledger.num_available) == (2, 1, 5)
    assert first.slot != second.slot
    made.let_go(first)
    assert (first.slot, first.pages) == (None, [])
    assert (len(made), made.num_free_slots, ledger.num_available) == (1, 2, 7)
    assert list(made.requests) == [second]


@pytest.mark.parametrize("most", [0, 1, 3, 7, 8, 9, 100])
@pytest.mark.parametrize("lengths", [(4, 8), (1, 7), (3, 3)])
def test_steps_are_counted_while_pages_last(
    lengths: tuple[int, int], most: int
) -> None:
    made, ledger = holders()
    requests = [decoding(made, one) for one in lengths]
    found = made.num_steps_with_pages(requests, most)
    num_steps = 0  # one by one
    while num_steps < most:
        pages = sum(-(-(one + num_steps + 1) // PAGE) for one in lengths)
        if pages > ledger.num_pages:
            break
        num_steps += 1
    assert found == num_steps
