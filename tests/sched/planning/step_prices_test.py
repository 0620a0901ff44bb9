import numpy as np
import pytest

from jserve_sched.buckets.strategies import Continuous
from jserve_sched.buckets.table import BucketTable
from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.requests.facts import facts_of
from jserve_sched.requests.request import Request
from jserve_sched.steps import features
from jserve_sched.steps.plan import Row
from tests.fakes import begin, make_request
from tests.step_costs import Curve, make_view

TABLE = BucketTable((2, 4, 8), (0, 1, 2, 4, 8), block_tokens=4)
CONTINUOUS = Continuous().table(
    max_num_seqs=8, max_num_batched_tokens=1032, block_tokens=4
)


def prompts_of(*lengths: int) -> list[Request]:
    return [make_request(length, 4) for length in lengths]


@pytest.mark.parametrize("table", [TABLE, CONTINUOUS])
def test_features_are_those_of_the_step_that_would_run(table: BucketTable) -> None:
    decodes = [
        Row(begin(make_request(tokens, 8)), tokens, 1, True) for tokens in (30, 9)
    ]
    requests = prompts_of(5, 13, 3)
    begin(requests[1], 4)  # partly computed
    view = make_view(table, Curve(lambda tokens: tokens))
    prices = StepPrices(view, decodes).of(facts_of(requests))
    size = table.block_tokens
    budgets = np.arange(prices.steps.max_blocks + 1)
    matrix = prices.features(budgets)
    for budget in budgets.tolist():
        chunks, left = [], budget
        for request in requests:
            tokens = min(request.num_remaining_tokens, left * size)
            if tokens:
                chunks.append(
                    Row(request, request.num_dispatched_tokens, tokens, False)
                )
                left -= -(-tokens // size)
        used = sum(-(-row.num_tokens // size) for row in chunks)
        expected = features.step_features(
            decodes,
            chunks,
            table.fit(2, used),
            view.ledger.page_size,
        )
        assert matrix[budget].tolist() == expected.tolist(), budget


@pytest.mark.parametrize("limit", [0.0, 3.0, 17.5, 100.0, 999.0, 5000.0])
def test_time_to_budget_is_the_largest_that_fits(limit: float) -> None:
    view = make_view(CONTINUOUS, Curve(lambda tokens: 1 + tokens + 1e-3 * tokens**2))
    prompts = facts_of(prompts_of(600, 600))
    prices = StepPrices(view, []).of(prompts)
    budgets = np.arange(prices.steps.max_blocks + 1)
    fits = budgets[prices.predict(budgets) <= limit]
    assert prices.largest_within(limit) == (fits[-1] if fits.size else 0)
    assert prices.largest_within(float("inf")) == prices.steps.max_blocks


def test_a_prompt_alone_takes_as_many_full_steps_as_it_needs() -> None:
    view = make_view(TABLE, Curve(lambda tokens: 10.0 + tokens), max_tokens=40)
    requests = prompts_of(8, 74)
    requests[1].num_shared_tokens = 4
    prompts = facts_of(requests)
    alone_s = StepPrices(view, []).alone_s(prompts)
    assert alone_s.tolist() == [18.0, 2 * (10 + 32) + 10 + 6]
