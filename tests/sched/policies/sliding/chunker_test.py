# mypy: disable-error-code="arg-type"

import numpy as np
import pytest

from jserve_sched.buckets.strategies import Continuous
from jserve_sched.buckets.table import BucketTable
from jserve_sched.planning.step_prices import OrderPrices, StepPrices
from jserve_sched.policies.sliding.chunker import choose_budget
from jserve_sched.requests.facts import facts_of
from tests.fakes import make_request
from tests.step_costs import Curve, Staircase, make_view

EDGES = (0, 1, 2, 4, 8, 16, 32)
TABLE = BucketTable((8,), EDGES, block_tokens=32)
CONTINUOUS = Continuous().table(
    max_num_seqs=8, max_num_batched_tokens=2056, block_tokens=1
)


def prices_of(
    table: BucketTable, predictor: Curve | Staircase, work_tokens: float = 1e6
) -> OrderPrices:
    one = facts_of([make_request(8, 4)])
    prompt = one._replace(known_tokens=np.array([work_tokens]))
    return StepPrices(make_view(table, predictor), []).of(prompt)


def test_convex_times_split_the_two_budgets_evenly() -> None:
    prices = prices_of(CONTINUOUS, Curve(lambda t: 1 + t * 1e-3 + 1e-6 * t**2))
    current_s, next_s = 3.0, 2.0
    both = prices.largest_within(current_s) + prices.largest_within(next_s)
    chosen = choose_budget(
        prices, current_s=current_s, next_s=next_s, is_published=True
    )
    assert chosen == pytest.approx(both / 2, abs=16)


@pytest.mark.parametrize("is_published", [True, False])
def test_an_affine_cost_gains_nothing_over_greedy(is_published: bool) -> None:
    prices = prices_of(CONTINUOUS, Curve(lambda t: 1 + t * 1e-3))
    chosen = choose_budget(prices, current_s=2.0, next_s=1.5, is_published=is_published)
    assert chosen == prices.largest_within(2.0) == 1000


def test_figure_1_gains_tokens_in_the_same_time() -> None:
    # Greedy: 100 ms then 50 ms. A cost whose marginal price rises makes two steps of
    # 75 ms hold more tokens.
    prices = prices_of(CONTINUOUS, Curve(lambda t: 0.02 + 9e-5 * t**0.98 + 4e-8 * t**2))
    chosen = choose_budget(prices, current_s=0.100, next_s=0.050)
    greedy = prices.largest_within(0.100) + prices.largest_within(0.050)
    left_s = 0.150 - float(prices.predict(np.array([chosen]))[0])
    assert chosen + prices.largest_within(left_s) > greedy
    assert chosen < prices.largest_within(0.100)


@pytest.mark.parametrize("is_published", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_both_limits_are_kept(seed: int, is_published: bool) -> None:
    rng = np.random.default_rng(seed)
    steps_s = np.cumsum(rng.uniform(0.1, 3.0, 33) * (rng.random(33) < 0.4)) + 1
    stairs = Staircase(lambda blocks: steps_s[blocks.astype(int)])
    table = BucketTable((8,), tuple(range(33)), block_tokens=32)
    prices = prices_of(table, stairs)
    current_s, next_s = rng.uniform(1, steps_s[-1] * 1.1, 2)
    current = prices.largest_within(current_s)
    both = current + prices.largest_within(next_s)
    first = choose_budget(
        prices, current_s=current_s, next_s=next_s, is_published=is_published
    )
    assert 0 <= first <= current, "the current deadline would be broken"
    if is_published:
        assert both - first <= prices.steps.max_blocks


def test_all_the_work_at_once_if_it_fits() -> None:
    prices = prices_of(TABLE, Staircase(lambda blocks: 1 + blocks), 90.0)
    chosen = choose_budget(prices, current_s=6.0, next_s=9.0)
    assert chosen >= prices.num_blocks == 3
