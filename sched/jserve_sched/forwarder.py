"""BatchForwarder: what would a step with this much prefill cost?

SlidingServe's batch-forward simulator F (arXiv 2606.05933, section 4): all decodes,
then prompts in order until a budget is used up. A budget is a number of
prefill *blocks*, and the features of any number of budgets follow from prefix sums
over the prompts, so all candidates are priced by one vectorised prediction. With
continuous shapes a block is one token and this is the paper's token budget.

`N` is the number of budgets asked about at once, `P` the number of prompts.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jserve_sched import features
from jserve_sched.request import Request, RequestState
from jserve_sched.view import SchedulerView

_GRID_POINTS = 128  # most budgets that are priced at once


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What is left of some prompts, in the order in which they would be taken.

    Attributes:
      requests: Requests whose prompts they are.
      start: `[P]` tokens whose KV exists or is shared.
      tokens: `[P]` tokens left, r_i.
    """

    requests: Sequence[Request]
    start: np.ndarray
    tokens: np.ndarray

    def take(self, order: np.ndarray) -> "Prompts":
        """Returns those at the given places, in that order."""
        return Prompts(
            [self.requests[index] for index in order.tolist()],
            self.start[order],
            self.tokens[order],
        )


def remaining_prompts(view: SchedulerView, requests: Sequence[Request]) -> Prompts:
    """Returns what is left of the prompts of running or waiting requests.

    A page of a waiting request that the prefix cache holds is not left to do.
    """
    page_size = view.ledger.page_size
    find_prefix = view.ledger.find_prefix
    start, tokens = [], []
    for request in requests:
        begin = request.num_dispatched  # 0 while waiting
        if request.page_hashes and request.state is RequestState.WAITING:
            reusable = (request.num_known - 1) // page_size
            begin = len(find_prefix(request.page_hashes[:reusable])) * page_size
        start.append(begin)
        tokens.append(request.num_projected - begin)
    return Prompts(requests, np.array(start, np.float64), np.array(tokens, np.float64))


class BatchForwarder:
    """Prices the steps that one snapshot allows.

    Attributes:
      max_blocks: Most blocks a step may have beside the decodes.
      num_blocks: Blocks of all the prompts together.
      grid_step: Blocks between two budgets of the grid.
      block_tokens: Tokens in one block, Q.
      grid: Budgets `[N]` that span what a step can hold, ascending from 0.
    """

    def __init__(
        self,
        view: SchedulerView,
        decodes: Sequence[Request],
        prompts: Prompts,
        *,
        is_cautious: bool = False,
    ):
        """Looks at a snapshot.

        Every decode has a row. Prompts are in the order in which they would be taken.
        If cautious, a budget costs the 95th percentile of its duration.
        """
        predictor = view.predictor
        self._price = predictor.predict_upper if is_cautious else predictor.predict
        self._view = view
        self._page_size = view.ledger.page_size
        self._edges = view.buckets.block_edge_array
        num_rows = min(len(decodes), view.buckets.max_rows)
        starts = [request.num_dispatched for request in decodes]
        self._decode_row = np.zeros(features.NUM_FEATURES)
        self._decode_row[features.NUM_DECODES] = len(starts)
        self._decode_row[features.DECODE_CONTEXT] = sum(starts)
        self._decode_row[features.CACHED_TOKENS] = sum(starts)
        self._decode_row[features.NUM_ROWS] = view.buckets.fit(num_rows, 0).num_rows
        if starts:
            longest = -(-(max(starts) + 1) // self._page_size)
            self._decode_row[features.DECODE_PAGES] = longest
        self.block_tokens = view.buckets.block_tokens
        self.max_blocks = view.buckets.block_edge_beside(
            num_rows, view.max_num_batched_tokens
        )
        self.grid_step = -(-max(self.max_blocks, 1) // _GRID_POINTS)
        self.grid = np.append(
            np.arange(0, self.max_blocks, self.grid_step), self.max_blocks
        )
        self._grid_s: np.ndarray | None = None
        self.use(prompts)

    def use(self, prompts: Prompts) -> None:
        """Takes the prompts in another order from now on."""
        start, tokens = prompts.start, prompts.tokens
        blocks = np.ceil(tokens / self.block_tokens)
        # Leading zeros: nothing taken. The last column is for the request cut short.
        columns = np.zeros((6, len(tokens) + 1))
        np.cumsum(blocks, out=columns[0, 1:])
        np.cumsum(tokens * (start + tokens), out=columns[1, 1:])
        np.cumsum(tokens * tokens, out=columns[2, 1:])
        np.cumsum(start, out=columns[3, 1:])
        np.cumsum(tokens, out=columns[4, 1:])
        longest = np.zeros((2, len(tokens) + 1))
        np.maximum.accumulate(tokens, out=longest[0, 1:])
        np.maximum.accumulate(start + tokens, out=longest[1, 1:])
        self._sums = columns
        self._longest = longest
        self._start, self._tokens = start, tokens
        self._grid_s = None
        self.num_blocks = int(columns[0, -1])

    def blocks_of_first(self, count: int) -> int:
        """Returns the blocks that the first `count` prompts take."""
        return int(self._sums[0, count])

    def features(self, budgets: np.ndarray) -> np.ndarray:
        """Returns the features `[N, F]` of steps with budgets `[N]` of blocks."""
        used = np.minimum(budgets, self.num_blocks)
        sums, longest = self._sums, self._longest
        whole = sums[0].searchsorted(used, "right") - 1  # prompts taken entirely
        cut = np.minimum(whole, len(self._tokens) - 1)
        matrix = np.empty((len(used), features.NUM_FEATURES))
        matrix[:] = self._decode_row
        if len(self._tokens):
            left = np.minimum(
                (used - sums[0, whole]) * self.block_tokens, self._tokens[cut]
            )
            start = np.where(left > 0, self._start[cut], 0.0)
            stop = start + left
            matrix[:, features.PREFILL_WORK] = sums[1, whole] + left * stop
            matrix[:, features.CHUNK_SQUARES] = sums[2, whole] + left * left
            matrix[:, features.CACHED_TOKENS] += sums[3, whole] + start
            matrix[:, features.PREFILL_TOKENS] = sums[4, whole] + left
            matrix[:, features.LARGEST_CHUNK] = np.maximum(longest[0, whole], left)
            matrix[:, features.BLOCK_PAGES] = np.ceil(
                np.maximum(longest[1, whole], stop) / self._page_size
            )
        edge = self._edges.searchsorted(used)
        matrix[:, features.NUM_BLOCKS] = self._edges[
            np.minimum(edge, len(self._edges) - 1)
        ]
        return matrix

    def predict(self, budgets: np.ndarray) -> np.ndarray:
        """Returns predicted durations `[N]`, seconds: the paper's Pred(b, D, P)."""
        return self._price(self.features(budgets))

    def alone_s(self, prompts: Prompts) -> np.ndarray:
        """Returns `[P]` seconds to finish each prompt beside the decodes, no other.

        Full steps of `max_blocks` and one step with what is left of it.
        """
        most = max(self.max_blocks, 1) * self.block_tokens
        full = np.maximum(np.ceil(prompts.tokens / most) - 1, 0)
        last = prompts.tokens - full * most
        both = np.concatenate((last, np.minimum(prompts.tokens, most)))
        # The cost of a chunk is linear in what is cached: the mean of the full ones.
        mean = prompts.start + np.maximum(full - 1, 0) / 2 * most
        start = np.concatenate((prompts.start + full * most, mean))
        matrix = np.empty((len(both), features.NUM_FEATURES))
        matrix[:] = self._decode_row
        matrix[:, features.PREFILL_WORK] = both * (start + both)
        matrix[:, features.CHUNK_SQUARES] = both * both
        matrix[:, features.CACHED_TOKENS] += start
        matrix[:, features.PREFILL_TOKENS] = both
        matrix[:, features.LARGEST_CHUNK] = both
        matrix[:, features.BLOCK_PAGES] = np.ceil((start + both) / self._page_size)
        blocks = self._edges.searchsorted(np.ceil(both / self.block_tokens))
        matrix[:, features.NUM_BLOCKS] = self._edges[
            np.minimum(blocks, len(self._edges) - 1)
        ]
        both_s = self._view.predictor.predict(matrix)
        count = len(full)
        times_s: np.ndarray = both_s[:count] + full * both_s[count:]
        return times_s

    @property
    def grid_s(self) -> np.ndarray:
        """Predicted duration `[N]` of each budget of the grid, seconds."""
        if self._grid_s is None:
            self._grid_s = self.predict(self.grid)
        return self._grid_s

    def largest_within(self, limit_s: float) -> int:
        """Returns the largest budget whose predicted time is within a limit.

        The paper's TimeToBudget; 0 if nothing fits. Exact: where the grid is coarse,
        the budgets between two of its points are looked at as well.
        """
        if math.isinf(limit_s):
            return self.max_blocks
        fits = np.flatnonzero(self.grid_s <= limit_s)
        if not fits.size:
            return 0
        index = int(fits[-1])
        low = int(self.grid[index])
        if index + 1 == len(self.grid):
            return low
        between = np.arange(low + 1, int(self.grid[index + 1]))
        if between.size:
            closer = np.flatnonzero(self.predict(between) <= limit_s)
            if closer.size:
                return int(between[closer[-1]])
        return low

    def capacities(self, limits_s: np.ndarray) -> np.ndarray:
        """Returns `[N]` int budgets that fit limits `[N]`, by one look at the grid.

        Where the grid leaves budgets out, the time between two of its points is taken
        to be linear: nearly `largest_within`, for many limits at once.
        """
        curve_s = np.maximum.accumulate(self.grid_s)
        place = curve_s.searchsorted(limits_s, "right")
        low = self.grid[np.maximum(place - 1, 0)]
        if self.grid_step == 1:
            budgets = low
        else:
            budgets = np.floor(np.interp(limits_s, curve_s, self.grid))
        return np.where(place > 0, budgets, 0).astype(np.int64)

    @property
    def edges(self) -> np.ndarray:
        """Budgets `[N]` on which a step should end: the compiled edges.

        Where almost every budget is an edge (continuous shapes), the grid.
        """
        if len(self._edges) > _GRID_POINTS:
            return self.grid
        return self._edges[self._edges <= self.max_blocks]
