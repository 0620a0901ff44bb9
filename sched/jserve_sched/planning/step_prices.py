"""StepPrices: what a step costs that has a given budget of prefill.

SlidingServe's batch-forward simulator F (arXiv 2606.05933, section 4): all decodes,
then prompts in order until a budget of prefill *blocks* is used up. The features of any
number of budgets follow from prefix sums over the prompts, so one vectorised prediction
prices all of them. Without buckets a block is one token, as in the paper.

    step_prices = StepPrices(view)                   # of one snapshot
    prices = step_prices.of(candidates.facts)        # of one order of its prompts
    budget = prices.largest_within(0.05)             # the paper's TimeToBudget

`N` is the number of budgets asked about at once, `P` the number of prompts.
"""

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.facts import Facts
from jserve_sched.requests.request import Request
from jserve_sched.steps import features
from jserve_sched.steps.plan import Row

_GRID_POINTS = 128  # most budgets that are priced at once
_CHUNK_FEATURES = [
    features.PREFILL_WORK,
    features.CHUNK_SQUARES,
    features.CACHED_TOKENS,
    features.PREFILL_TOKENS,
    features.BLOCK_PAGES,
    features.LARGEST_CHUNK,
]


def rows_of(decodes: Iterable[Request]) -> list[Row]:
    """Returns the rows of the next tokens of requests."""
    return [Row(one, one.num_dispatched_tokens, 1, True) for one in decodes]


class StepPrices:
    """Prices the steps of one snapshot, in which every decode has a row.

    Attributes:
      max_blocks: Most blocks a step may have beside the decodes.
      grid: Budgets `[N]` that span what a step can hold, ascending from 0.
      grid_step: Blocks between two budgets of the grid.
    """

    def __init__(
        self,
        view: SchedulerView,
        decodes: Sequence[Row] | None = None,
        *,
        is_cautious: bool = False,
    ):
        """Prices steps beside some decodes, all by default.

        If cautious, a budget costs the 95th percentile of its duration.
        """
        if decodes is None:
            decodes = rows_of(view.decodes)
        self._predict = view.predictor.predict
        self.predict = view.predictor.predict_upper if is_cautious else self._predict
        self._page_size = view.ledger.page_size
        self._block_edges = view.buckets.block_edge_array
        num_rows = min(len(decodes), view.buckets.max_rows)
        bucket = view.buckets.fit(num_rows, 0)
        self._rows_beside_blocks = view.buckets.fit(num_rows, 1).num_rows
        self._decode_row = features.step_features(decodes, (), bucket, self._page_size)
        self.block_tokens = view.buckets.block_tokens
        self.max_blocks = view.buckets.block_edge_beside(
            num_rows, view.max_num_batched_tokens
        )
        self.grid_step = -(-max(self.max_blocks, 1) // _GRID_POINTS)
        self.grid = np.append(
            np.arange(0, self.max_blocks, self.grid_step), self.max_blocks
        )

    def of(self, prompts: Facts) -> "OrderPrices":
        """Returns the prices of steps that take prompts in this order."""
        return OrderPrices(self, prompts)

    @property
    def edges(self) -> np.ndarray:
        """Budgets `[N]` on which a step should end: the compiled edges.

        Where almost every budget is an edge (no buckets), the grid.
        """
        if len(self._block_edges) > _GRID_POINTS:
            return self.grid
        return self._block_edges[self._block_edges <= self.max_blocks]

    def columns(self, start: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Returns what chunks `[N]` bring into a step, `[7, N]`.

        Of several chunks the first six add up: blocks, x1, x2, cached tokens, tokens
        and KV pages of blocks; of their tokens also the largest counts.
        """
        stop, blocks = start + tokens, np.ceil(tokens / self.block_tokens)
        pages = features.pages_of_blocks(
            start, tokens, self.block_tokens, self._page_size
        )
        return np.array(
            (blocks, tokens * stop, tokens * tokens, start, tokens, pages, tokens)
        )

    def matrix(self, columns: np.ndarray) -> np.ndarray:
        """Returns the features `[N, F]` of chunks `[7, N]` beside the decodes."""
        matrix = np.empty((columns.shape[1], features.NUM_FEATURES))
        matrix[:] = self._decode_row
        matrix[:, _CHUNK_FEATURES] += columns[1:].T
        edges = self._block_edges
        edge = np.minimum(edges.searchsorted(columns[0]), len(edges) - 1)
        matrix[:, features.NUM_BLOCKS] = edges[edge]
        matrix[edge > 0, features.NUM_ROWS] = self._rows_beside_blocks
        return matrix

    def alone_s(self, prompts: Facts) -> np.ndarray:
        """Returns `[P]` seconds to finish each prompt beside the decodes, no other.

        Full steps of `max_blocks` and one step with what is left of it.
        """
        most = max(self.max_blocks, 1) * self.block_tokens
        tokens, begin = prompts.tokens, prompts.start
        full = np.maximum(np.ceil(tokens / most) - 1, 0)
        long = np.flatnonzero(full)
        # The cost of a chunk is linear in what is cached: the mean of the full ones.
        mean = begin[long] + (full[long] - 1) / 2 * most
        start = np.concatenate((begin + full * most, mean))
        chunk = np.concatenate((tokens - full * most, np.full(len(long), most)))
        both_s = self._predict(self.matrix(self.columns(start, chunk)))
        times_s = both_s[: len(tokens)].copy()
        times_s[long] += full[long] * both_s[len(tokens) :]
        return times_s


class OrderPrices:
    """Prices the steps that take prompts in one order, of `num_blocks` together."""

    def __init__(self, steps: StepPrices, prompts: Facts):
        """Takes the first prompts whole and cuts the one at which a budget ends."""
        self.steps = steps
        self.prompts = prompts
        columns = steps.columns(prompts.start, prompts.tokens)
        # What the first prompts bring, none of them to all: leading zeros.
        self._taken = np.zeros((7, len(prompts.tokens) + 1))
        np.cumsum(columns[:6], axis=1, out=self._taken[:6, 1:])
        np.maximum.accumulate(columns[6], out=self._taken[6, 1:])
        # Trailing zeros: the prompt after the last one.
        self._start = np.concatenate((prompts.start, [0.0]))
        self._tokens = np.concatenate((prompts.tokens, [0.0]))
        self.ends = self._taken[0]  # blocks `[P + 1]` of none of the first to all
        self.num_blocks = int(self.ends[-1])

    def features(self, budgets: np.ndarray) -> np.ndarray:
        """Returns the features `[N, F]` of steps with budgets `[N]` of blocks."""
        used = np.minimum(budgets, self.num_blocks)
        whole = self.ends.searchsorted(used, "right") - 1  # prompts taken entirely
        taken = self._taken[:, whole]
        left = (used - taken[0]) * self.steps.block_tokens
        left = np.minimum(left, self._tokens[whole])
        start = np.where(left > 0, self._start[whole], 0.0)
        cut = self.steps.columns(start, left)
        taken[:6] += cut[:6]
        np.maximum(taken[6], cut[6], out=taken[6])
        return self.steps.matrix(taken)

    def predict(self, budgets: np.ndarray) -> np.ndarray:
        """Returns predicted durations `[N]`, seconds: the paper's Pred(b, D, P)."""
        if self.steps.grid_step == 1:  # each budget is on the grid
            return self.grid_s[budgets.astype(np.int64)]
        return self.steps.predict(self.features(budgets))

    @functools.cached_property
    def grid_s(self) -> np.ndarray:
        """Predicted duration `[N]` of each budget of the grid, seconds."""
        return self.steps.predict(self.features(self.steps.grid))

    def largest_within(self, limit_s: float) -> int:
        """Returns the largest budget whose predicted time is within a limit.

        The paper's TimeToBudget; 0 if nothing fits. Exact: where the grid is coarse,
        the budgets between two of its points are looked at as well.
        """
        if math.isinf(limit_s):
            return self.steps.max_blocks
        fits = np.flatnonzero(self.grid_s <= limit_s)
        if not fits.size:
            return 0
        bounds = np.append(self.steps.grid, self.steps.max_blocks + 1)[fits[-1] :]
        between = np.arange(bounds[0] + 1, bounds[1])
        if between.size:
            closer = between[self.predict(between) <= limit_s]
            if closer.size:
                return int(closer[-1])
        return int(bounds[0])

    def capacities(self, limits_s: np.ndarray) -> np.ndarray:
        """Returns `[N]` int budgets that fit limits `[N]`, by one look at the grid.

        Where the grid leaves budgets out, the time between two of its points is taken
        to be linear: nearly `largest_within`, for many limits at once.
        """
        grid, curve_s = self.steps.grid, np.maximum.accumulate(self.grid_s)
        place = curve_s.searchsorted(limits_s, "right")
        if self.steps.grid_step == 1:
            budgets = grid[np.maximum(place - 1, 0)]
        else:
            budgets = np.floor(np.interp(limits_s, curve_s, grid))
        return np.where(place > 0, budgets, 0).astype(np.int64)
