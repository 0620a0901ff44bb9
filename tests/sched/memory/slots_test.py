import pytest

from jserve_sched.memory.ledger import KvLedger
from jserve_sched.memory.slots import Holders
from tests.fakes import make_request

PAGE = 4


@pytest.mark.parametrize("most", [0, 1, 3, 7, 8, 9, 100])
@pytest.mark.parametrize("lengths", [(4, 8), (1, 7), (3, 3)])
def test_steps_are_counted_while_pages_last(
    lengths: tuple[int, int], most: int
) -> None:
    ledger = KvLedger(num_pages=10, page_size=PAGE, enable_prefix_caching=False)
    holders = Holders(ledger, 3)
    requests = [make_request(length, 50) for length in lengths]
    for request in requests:
        holders.admit(request, 0)
        holders.reserve(request, request.num_prompt_tokens)
        request.num_dispatched_tokens = request.num_prompt_tokens
    found = holders.num_steps_with_pages(requests, most)
    num_steps = 0  # one by one
    while num_steps < most:
        pages = sum(-(-(one + num_steps + 1) // PAGE) for one in lengths)
        if pages > ledger.num_pages:
            break
        num_steps += 1
    assert found == num_steps
