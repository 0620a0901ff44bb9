"""`sliding`: SlidingServe (arXiv 2606.05933), snapped to compiled buckets.

A step is planned in this order (section 3.1):

1. Every decode has a row.
2. The sorter ranks the prompts.
3. The fullest step is priced. If it would make a prompt late that is not late yet,
   the BatchConstructor selects the prompts to finish; if none is at risk, or no
   selection helps, the SlidingChunker sizes the step.
4. Room left in the bucket is filled in order of rank, since padding costs as much.

The default is what does best, not what was published, which is `sliding:published=on`.
Ours differs:

* Prompts are ranked by Moore's rule (see `sorter`), and the chunker seeks the most
  tokens on compiled edges instead of the least time (see `chunker`).
* After a selection the paper leaves the rest of the step empty; here it is filled.
* Nothing in the paper looks at requests that are yet to come, and a step, once begun,
  cannot be stopped: requests that arrive wait for its end. Here no step is longer than
  the tight first-token objectives of late leave after a step of decodes, so one that
  comes at the worst moment can still be in time. The paper's only such limit is B, the
  most tokens in a step, which must be tuned for each machine and load.
* A step is sized by the 95th percentile of its predicted time instead of the median:
  steps are filled up to the tightest deadline, so half of them would break it by that.

Without the sorter prompts go by deadline (the paper's Sarathi-EDF); without the
constructor the chunker decides alone. What the paper leaves open is decided in
`sorter`, `chunker`, `constructor` and `tightest_slack`; it has no KV limit, and here a
selected prompt that finds no pages waits, and the others go on (see `builder`).
"""

import dataclasses

import numpy as np

from jserve_sched.planning.builder import PlanBuilder
from jserve_sched.planning.candidates import Candidates, tightest_slack
from jserve_sched.planning.step_prices import OrderPrices, StepPrices
from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.sliding.chunker import choose_budget
from jserve_sched.policies.sliding.constructor import select
from jserve_sched.policies.sliding.sorter import Ranking, Sorter, rank
from jserve_sched.requests.facts import Facts
from jserve_sched.steps.plan import StepPlan

_QUANTUM_TOKENS = 16  # of the knapsack, where blocks are smaller than that


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlidingServe:
    """SlidingServe, two parts of which may be off.

    Attributes:
      published: Whether all is as the paper says.
      sorter: Whether prompts are ranked, not just ordered by deadline.
      constructor: Whether the BatchConstructor selects prompts at risk.
      alpha: If published: a prompt is urgent if its work takes more than this share of
        its slack.

    Raises:
      ValueError: If `alpha` is below 0.
    """

    published: bool = False
    sorter: bool = True
    constructor: bool = True
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise ValueError(f"alpha={self.alpha} is not 0 or more")

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        builder, candidates = PlanBuilder(view), Candidates(view)
        candidates.add_decodes(builder)
        if candidates.prompts:
            self._add_prompts(view, candidates, builder)
        return builder.build()

    def order(
        self, view: SchedulerView, steps: StepPrices, prompts: Facts
    ) -> np.ndarray:
        """Returns the places of prompts by rank."""
        return self._rank(view, steps, prompts).order

    def _rank(self, view: SchedulerView, steps: StepPrices, prompts: Facts) -> Ranking:
        sorter: Sorter = "mlps" if self.published else "moore"
        if not self.sorter:
            sorter = "off"
        return rank(view, steps, prompts, sorter=sorter, alpha=self.alpha)

    def _add_prompts(
        self, view: SchedulerView, candidates: Candidates, builder: PlanBuilder
    ) -> None:
        step_prices = StepPrices(view, is_cautious=not self.published)

        # Multi-Level Priority Sorter (3.3, Eq. 6 to 13): all prompts, by rank.
        prompts = candidates.facts
        ranking = self._rank(view, step_prices, prompts)
        prices = step_prices.of(prompts.take(ranking.order))

        # T_cur and T_next (Eq. 14 and 15), and ours: how long a step may be at most.
        current_s, next_s = tightest_slack(
            candidates.decodes, start_s=view.start_s, least_s=float(prices.grid_s[0])
        )
        longest_s = np.inf
        if not self.published:
            longest_s = _longest_s(view, prices)
            if longest_s < current_s:
                next_s = min(current_s + next_s - longest_s, longest_s)
                current_s = longest_s

        # Violation Checker (3.1): R_risk, the prompts that a full step would make late.
        full_s = min(float(prices.grid_s[-1]), longest_s)
        at_risk = ~ranking.late & (ranking.slack_s < full_s)
        if self.constructor and at_risk.any():
            # BatchConstructor (3.5, Algorithm 2): the prompts that this step finishes.
            chosen = _select(view, prices, ranking, at_risk, current_s)
            if chosen.size:
                limit_s = min(float(ranking.slack_s[chosen].min()), current_s)
                self._add_selection(candidates, builder, prices, chosen, limit_s)
                if builder.used_blocks:
                    return

        # SlidingChunker (3.4, Algorithm 1): B*, the prefill of the first of two steps.
        budget = choose_budget(
            prices,
            current_s=current_s,
            next_s=next_s,
            longest_s=longest_s,
            is_published=self.published,
        )
        builder.limit_time(budget)
        candidates.add_prompts(builder, prices.prompts.requests)

    def _add_selection(
        self,
        candidates: Candidates,
        builder: PlanBuilder,
        prices: OrderPrices,
        chosen: np.ndarray,
        limit_s: float,
    ) -> None:
        """Adds the chosen prompts; ours adds others as far as `limit_s` allows.

        Guarded prompts stay in front of the chosen ones.
        """
        prompts = prices.prompts
        place = np.where(prompts.guard > 0, 0, 2)
        place[chosen] = np.minimum(place[chosen], 1)
        front = prices.steps.of(prompts.take(np.argsort(place, kind="stable")))
        num_first = int((place < 2).sum())
        blocks, requests = int(front.ends[num_first]), front.prompts.requests
        if self.published:
            requests = requests[:num_first]
        else:
            blocks = max(blocks, front.largest_within(limit_s))
        builder.limit_time(blocks)
        candidates.add_prompts(builder, requests)


def _longest_s(view: SchedulerView, prices: OrderPrices) -> float:
    """Returns how long a step may be for the sake of requests yet to come, seconds.

    Where decodes alone take so long that one which comes at the worst moment is late
    anyhow, short enough for one that comes at the end of a step. But never too short
    for any prefill, and unlimited where no step is short enough.
    """
    least_s, first_s = prices.grid_s[:2].tolist()
    num_waits = 2 if view.in_flight_s else 1  # a planned step cannot be recalled
    longest_s = (view.tight_ttft_s - least_s) / num_waits
    if longest_s < least_s:
        longest_s = view.tight_ttft_s / num_waits
    return max(longest_s, first_s) if longest_s >= least_s else np.inf


def _select(
    view: SchedulerView,
    prices: OrderPrices,
    ranking: Ranking,
    at_risk: np.ndarray,
    current_s: float,
) -> np.ndarray:
    """Returns the places of the prompts to finish in this step; may be empty."""
    slack_s = np.where(ranking.late, -1.0, ranking.slack_s)
    limits_s = np.minimum(slack_s, current_s)
    prompts, size = prices.prompts, view.buckets.block_tokens
    unit_tokens = -(-max(size, _QUANTUM_TOKENS) // size) * size
    chosen = select(
        slack_s=slack_s,
        weight=np.ceil(prompts.tokens / unit_tokens).astype(np.int64),
        is_at_risk=at_risk,
        capacity=prices.capacities(limits_s) * size // unit_tokens,  # C_j, Eq. 17
    )
    if not chosen.size:
        return chosen
    # The curve is that of the ranked prompts: price the selection itself, and give up
    # those that can wait longest until the rest is in time.
    by_slack = chosen[np.argsort(slack_s[chosen], kind="stable")]
    selection = prices.steps.of(prompts.take(by_slack))
    in_time = selection.predict(selection.ends[1:]) <= limits_s[by_slack[0]]
    most = np.max(np.flatnonzero(in_time), initial=-1) + 1
    return np.sort(by_slack[:most])
