"""SlidingChunker: how much prefill two steps should share (SlidingServe 3.4).

The window is two steps; only the first is run, then all is decided again. Both are
priced with the present decodes and prompts: as in the paper, nothing is rolled forward.

* `time` (Algorithm 1) keeps the tokens that fit into both steps, B_cur + B_next, and
  takes the least total time. `tokens` (its Fig. 1) keeps the time, T_cur + T_next,
  and takes the most tokens.
* `ternary` is the published search; `edges` tries every compiled edge (or a grid, where
  there are no buckets) and is exact there: E candidates are one prediction, E^2 sums.

Where the paper is silent: the budget is clamped to B_cur (as printed it may break
T_cur) and the other one to what a step can hold; their sum is at most the work there
is, or a step would be priced without its tokens; if all the work fits into B_cur, it
is done at once, since waiting gains no time and costs TTFT. Ties go to the larger
budget now.
"""

import math
from typing import Literal

import numpy as np

from jserve_sched.planning.step_prices import OrderPrices

Objective = Literal["time", "tokens"]
Search = Literal["ternary", "edges"]
_TERNARY_WIDTH_TOKENS = 30  # where Algorithm 1 stops
_TIME_NOISE = 1e-9  # relative: sums that differ by less are equal


def choose_budget(
    prices: OrderPrices,
    *,
    current_s: float,
    next_s: float,
    longest_s: float = math.inf,
    objective: Objective = "tokens",
    search: Search = "edges",
) -> int:
    """Returns B*, the blocks of prefill that the next step should have.

    Args:
      current_s: T_cur (Eq. 14), seconds; infinite if nothing limits it.
      next_s: T_next (Eq. 15), seconds.
      longest_s: Most seconds of any step; without it the first would be kept short for
        the sake of a second that never comes.
    """
    current = prices.largest_within(current_s)
    if current >= prices.num_blocks or current == 0 or math.isinf(next_s):
        return current
    if objective == "tokens":
        # Fig. 1 has no algorithm: without the edges, an even grid is searched.
        every = prices.steps.edges if search == "edges" else prices.steps.grid
        return _most_tokens(prices, every, current, current_s + next_s, longest_s)
    total = min(current + prices.largest_within(next_s), prices.num_blocks)
    low = max(0, total - prices.steps.max_blocks)
    find = _ternary if search == "ternary" else _exact
    return find(prices, low, current, total)


def _most_tokens(
    prices: OrderPrices,
    every: np.ndarray,
    current: int,
    total_s: float,
    longest_s: float,
) -> int:
    """Returns the first budget, out of `every`, of the pair with most tokens."""
    now = np.concatenate((every[every < current], [current])).astype(np.int64)
    left_s = np.minimum(total_s - prices.predict(now), longest_s)
    total = now + prices.capacities(left_s)
    total = np.minimum(total, prices.num_blocks)  # no more than there is
    # Between points of the grid capacities are estimates: so near is as good.
    slightly_less = total.max() - (prices.steps.grid_step - 1)
    return int(now[total >= slightly_less].max())


def _two_steps_s(prices: OrderPrices, budgets: np.ndarray, total: int) -> np.ndarray:
    """Returns `T(b) + T(total - b)` for budgets b `[N]` (Eq. 16)."""
    both = prices.predict(np.concatenate((budgets, total - budgets)))
    times_s: np.ndarray = both.reshape(2, -1).sum(axis=0)
    return times_s


def _best(prices: OrderPrices, budgets: np.ndarray, total: int) -> int:
    """Returns the budget of least time; of equals the largest."""
    times_s = _two_steps_s(prices, budgets, total)
    return int(budgets[times_s <= times_s.min() * (1 + _TIME_NOISE)].max())


def _exact(prices: OrderPrices, low: int, high: int, total: int) -> int:
    """The best of all edges, of what the ternary search finds, and of even halves."""
    every = prices.steps.edges
    found = _ternary(prices, low, high, total)
    # Both the first and the second step should end on an edge.
    both = np.concatenate((every, total - every, (low, high, found, total // 2)))
    return _best(prices, np.unique(both[(both >= low) & (both <= high)]), total)


def _ternary(prices: OrderPrices, low: int, high: int, total: int) -> int:
    """Algorithm 1's search: thirds until 30 tokens, then the ends and the middle."""
    width = _TERNARY_WIDTH_TOKENS // prices.steps.block_tokens
    left, right = low, high
    while right - left > max(width, 2):
        third = (right - left) // 3
        middle = np.array((left + third, right - third))
        first_s, second_s = _two_steps_s(prices, middle, total)
        if first_s <= second_s:
            right = int(middle[1]) - 1
        else:
            left = int(middle[0]) + 1
    return _best(prices, np.array((low, high, (left + right) // 2)), total)
