"""SlidingChunker: how much prefill two steps should share (SlidingServe 3.4).

The window is two steps; only the first is run, then all is decided again. Both are
priced with the present decodes and prompts: as in the paper, nothing is rolled forward.

* As published (Algorithm 1), the tokens that fit into both steps, B_cur + B_next, are
  kept, and a ternary search finds the least total time.
* By default the time, T_cur + T_next, is kept, and the most tokens win, as in the
  paper's Fig. 1, which has no algorithm: every compiled edge is tried (or a grid, where
  there are no buckets). E candidates are one prediction.

Where the paper is silent: the budget is clamped to B_cur (as printed it may break
T_cur) and the other one to what a step can hold; their sum is at most the work there
is, or a step would be priced without its tokens; if all the work fits into B_cur, it
is done at once, since waiting gains no time and costs TTFT. Ties go to the larger
budget now.
"""

import math

import numpy as np

from jserve_sched.planning.step_prices import OrderPrices

_TERNARY_WIDTH_TOKENS = 30  # where Algorithm 1 stops
_TIME_NOISE = 1e-9  # relative: sums that differ by less are equal


def choose_budget(
    prices: OrderPrices,
    *,
    current_s: float,
    next_s: float,
    longest_s: float = math.inf,
    is_published: bool = False,
) -> int:
    """Returns B*, the blocks of prefill that the next step should have.

    Args:
      current_s: T_cur (Eq. 14), seconds; infinite if nothing limits it.
      next_s: T_next (Eq. 15), seconds.
      longest_s: Most seconds of any step, unless as published; without it the first
        would be kept short for the sake of a second that never comes.
    """
    current = prices.largest_within(current_s)
    if current >= prices.num_blocks or current == 0 or math.isinf(next_s):
        return current
    if not is_published:
        return _most_tokens(prices, current, current_s + next_s, longest_s)
    total = min(current + prices.largest_within(next_s), prices.num_blocks)
    low = max(0, total - prices.steps.max_blocks)
    return _least_time(prices, low, current, total)


def _most_tokens(
    prices: OrderPrices, current: int, total_s: float, longest_s: float
) -> int:
    """Returns the first budget of the pair with most tokens."""
    every = prices.steps.edges
    now = np.concatenate((every[every < current], [current])).astype(np.int64)
    left_s = np.minimum(total_s - prices.predict(now), longest_s)
    total = now + prices.capacities(left_s)
    total = np.minimum(total, prices.num_blocks)  # no more than there is
    # Between points of the grid capacities are estimates: so near is as good.
    slightly_less = total.max() - (prices.steps.grid_step - 1)
    return int(now[total >= slightly_less].max())


def _least_time(prices: OrderPrices, low: int, high: int, total: int) -> int:
    """Algorithm 1's search: thirds until 30 tokens, then the ends and the middle."""

    def both_s(*budgets: int) -> np.ndarray:
        """Returns `T(b) + T(total - b)` for budgets b `[N]` (Eq. 16)."""
        first = np.array(budgets)
        times_s = prices.predict(np.concatenate((first, total - first)))
        return np.asarray(times_s.reshape(2, -1).sum(axis=0))

    width = _TERNARY_WIDTH_TOKENS // prices.steps.block_tokens
    left, right = low, high
    while right - left > max(width, 2):
        third = (right - left) // 3
        first_s, second_s = both_s(left + third, right - third)
        if first_s <= second_s:
            right = right - third - 1
        else:
            left = left + third + 1
    ends = (low, high, (left + right) // 2)
    times_s = both_s(*ends)
    is_best = times_s <= times_s.min() * (1 + _TIME_NOISE)
    return max(budget for budget, best in zip(ends, is_best, strict=True) if best)
