from typing import Any, cast

import numpy as np
import pytest

from jserve_sched.buckets.table import BucketTable
from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.limits import TooLongError
from jserve_sched.requests.request import FinishReason
from jserve_sched.scheduler import PolicyError
from jserve_sched.steps.plan import StepPlan
from tests.fakes import (
    SMALL_TABLE,
    Driver,
    expected_output,
    make_request,
    make_scheduler,
)


def test_the_plan_is_projected_one_step_ahead() -> None:
    scheduler = make_scheduler()
    request = make_request(4, 3)
    scheduler.submit(request)
    first = scheduler.plan(0.0)
    assert first is not None and first.chunks[0].draws_token
    scheduler.dispatch(first, 0.0)
    second = scheduler.plan(0.0)
    assert second is not None
    assert [(row.start, row.num_tokens) for row in second.decodes] == [(4, 1)]
    scheduler.dispatch(second, 0.0)
    assert scheduler.plan(0.0) is None, "two plans are in flight"


@pytest.mark.parametrize(("place", "min_tokens"), [(3, 0), (0, 3)])
def test_a_stop_token_ends_it_after_min_tokens(place: int, min_tokens: int) -> None:
    request = make_request(5, 20, min_tokens=min_tokens)
    request.stop_token_ids = frozenset({expected_output(request)[place]})
    driver = Driver(make_scheduler(), lag=1)  # the row in flight is discarded
    driver.scheduler.submit(request)
    driver.run()
    assert request.output_tokens == expected_output(request)
    assert len(request.output_tokens) > min_tokens
    if not min_tokens:
        assert request.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("num_tokens", "num_cached"),
    [(30, 24), (16, 8)],  # the last token is always computed
)
def test_equal_prefixes_share_full_pages(num_tokens: int, num_cached: int) -> None:
    scheduler = make_scheduler(page_size=8)
    prompt = np.arange(num_tokens)
    driver = Driver(scheduler)
    for arrival_s in (0.0, 1.0):
        request = make_request(prompt=prompt, max_tokens=3, arrival_s=arrival_s)
        scheduler.submit(request)
        driver.run()
        assert request.output_tokens == expected_output(request)
    assert request.num_cached_tokens == num_cached


def test_the_latest_arrival_is_preempted_and_finishes_with_its_tokens() -> None:
    # Six pages of 8: both prompts fit, but not both outputs.
    scheduler = make_scheduler(num_pages=6, page_size=8, enable_prefix_caching=False)
    driver = Driver(scheduler)
    early = make_request(15, 20, arrival_s=0.0)
    late = make_request(14, 20, arrival_s=0.5)
    scheduler.submit(early)
    scheduler.submit(late)
    driver.run()
    assert scheduler.counters.num_preemptions > 0
    assert early.num_preemptions == 0 and late.num_preemptions > 0
    for request in (early, late):
        assert request.output_tokens == expected_output(request)


def test_shapes_may_change_between_plans() -> None:
    scheduler = make_scheduler()
    fine = scheduler.buckets
    coarse = BucketTable(
        (fine.max_rows,), (0, fine.max_blocks), fine.block_tokens, fine.max_tokens
    )
    scheduler.use_buckets(coarse)
    request = make_request(fine.block_tokens, 4)
    scheduler.submit(request)
    first = scheduler.plan(0.0)
    assert first is not None
    scheduler.dispatch(first, 0.0)
    scheduler.use_buckets(fine)
    second = scheduler.plan(0.0)
    assert second is not None
    assert first.bucket == coarse.fit(0, 1) != fine.fit(0, 1)
    assert second.bucket == fine.fit(1, 0) != coarse.fit(1, 0)


def test_buckets_that_do_not_fit_what_was_admitted_are_refused() -> None:
    scheduler = make_scheduler()
    with pytest.raises(ValueError, match="max_rows=3 cannot replace"):
        scheduler.use_buckets(BucketTable((2, 3), (0, 4), 4))


def test_parts_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="max_num_seqs=9 exceeds the largest row edge"):
        make_scheduler(max_num_seqs=9)
    least = SMALL_TABLE.row_edges[-1] + SMALL_TABLE.block_tokens
    with pytest.raises(ValueError, match=f"beside 8 rows: at least {least}"):
        make_scheduler(max_num_batched_tokens=least - 1)
    make_scheduler(max_num_batched_tokens=least)
    with pytest.raises(ValueError, match="page_size=6 is not a multiple of"):
        make_scheduler(page_size=6)


def test_a_request_that_can_never_run_or_whose_id_is_in_use_is_refused() -> None:
    scheduler = make_scheduler(num_pages=4, page_size=8, max_model_len=64)
    scheduler.submit(make_request(20, 12))
    with pytest.raises(TooLongError, match="max_tokens=13 is over 12: the KV pool"):
        scheduler.submit(make_request(20, 13))
    scheduler.submit(make_request(8, 5, request_id="a"))
    with pytest.raises(ValueError, match="in use"):
        scheduler.submit(make_request(8, 5, request_id="a"))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda view: 42, "policy Faulty planned 42, not a StepPlan"),
        (lambda view: 1 / 0, r"policy Faulty raised ZeroDivisionError\("),
    ],
)
def test_a_faulty_policy_is_named(answer: Any, message: str) -> None:
    class Faulty:
        def plan(self, view: SchedulerView) -> StepPlan | None:
            return cast(StepPlan, answer(view))

        def order(self, view: SchedulerView, *what: object) -> Any:
            return answer(view) / 0

    scheduler = make_scheduler()
    scheduler.policy = Faulty()
    scheduler.submit(make_request(4, 3))
    with pytest.raises(PolicyError, match=message):
        scheduler.plan(0.0)
    with pytest.raises(PolicyError, match="policy Faulty raised ZeroDivisionError"):
        scheduler.forecast(make_request(4, 3, request_id="new"), 0.0)
