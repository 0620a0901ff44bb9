import pytest

from fakes import SMALL_TABLE, make_request, make_scheduler


def test_parts_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="max_num_seqs=9 exceeds the largest row edge"):
        make_scheduler(max_num_seqs=9)
    least = SMALL_TABLE.row_edges[-1] + SMALL_TABLE.block_tokens
    with pytest.raises(ValueError, match=f"beside 8 rows: at least {least}"):
        make_scheduler(max_num_batched_tokens=least - 1)
    make_scheduler(max_num_batched_tokens=least)
    with pytest.raises(ValueError, match="page_size=6 is not a multiple of"):
        make_scheduler(page_size=6)


def test_a_request_fits_the_context_and_the_pool_or_is_refused() -> None:
    scheduler = make_scheduler(num_pages=4, page_size=8, max_model_len=64)
    scheduler.submit(make_request(20, 12))
    with pytest.raises(ValueError, match="are 33 tokens, over the KV pool of 32"):
        scheduler.submit(make_request(20, 13))
    with pytest.raises(ValueError, match="are 65 tokens, over the context of 64"):
        scheduler.submit(make_request(20, 45))
