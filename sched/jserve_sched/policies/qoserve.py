"""`qoserve`: dynamic chunks, hybrid priority, eager relegation (Niyama).

QoServe: Goel et al., ASPLOS '26, DOI 10.1145/3779212.3790206. Where the paper and its
released code differ, or are silent, the decisions below are ours, each in the
baseline's favour:

* The chunk is the largest whose predicted time (the code: times 1.2; the paper biases
  its forest instead) fits the least slack of the decodes, up to `max_chunk_tokens`
  (paper: about 2,500). A decode that cannot be in time any more does
  not hold the chunk back (the code: the smallest chunk), and a step may have no prefill
  (the code: 128 tokens, even if a decode will be late for them).
* Priority (Eq. 4 and 5): deadline of the first token plus `alpha_s_per_token` times
  the prompt tokens left; for a completion bound, its deadline plus that times prompt
  and output tokens left. The paper's history of output lengths is the scheduler's
  length estimator here, by default `max_tokens`.
* A request that has missed its first deadline, or would miss it if it were alone with
  the decodes, is relegated behind all that are not, until its case improves; the code
  never looks twice. Guarded classes are never relegated, and there is no free class,
  which the paper relegates first.
"""

import dataclasses

import numpy as np

from jserve_sched.planning.builder import PlanBuilder
from jserve_sched.planning.candidates import Candidates, tightest_slack
from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.facts import Facts
from jserve_sched.steps.plan import StepPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class QoServe:
    """Hybrid of deadline and work left, in chunks as large as decodes allow.

    Attributes:
      alpha_s_per_token: Weight of work against deadline, seconds per token; 0 is EDF.
      max_chunk_tokens: Most prefill tokens in a step.
    """

    alpha_s_per_token: float = 0.008
    max_chunk_tokens: int = 2500

    def __post_init__(self) -> None:
        if not 0 <= self.alpha_s_per_token < np.inf:
            raise ValueError(f"alpha_s_per_token={self.alpha_s_per_token} is below 0")
        if self.max_chunk_tokens < 1:
            raise ValueError(f"max_chunk_tokens={self.max_chunk_tokens} is below 1")

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        candidates = Candidates(view)
        builder = PlanBuilder(view)
        candidates.add_decodes(builder)
        if candidates.prompts:
            step_prices = StepPrices(view)
            # Hybrid priority, and eager relegation.
            prompts = candidates.facts
            prices = step_prices.of(
                prompts.take(self.order(view, step_prices, prompts))
            )
            # The largest chunk that makes no decode late.
            least_s, _ = tightest_slack(
                candidates.decodes,
                start_s=view.start_s,
                least_s=float(prices.grid_s[0]),
            )
            ceiling = max(self.max_chunk_tokens // view.buckets.block_tokens, 1)
            budget = min(prices.largest_within(least_s), ceiling)
            builder.limit_time(budget)
            candidates.add_prompts(builder, prices.prompts.requests)
        return builder.build()

    def order(
        self, view: SchedulerView, steps: StepPrices, prompts: Facts
    ) -> np.ndarray:
        """Returns the places of prompts by (relegated, priority, arrival)."""
        due_s = prompts.deadline_s
        # The answer counts where only its end is bounded.
        has_end = np.isfinite(prompts.end_s)
        has_end &= [one.slo.ttft_s is None for one in prompts.requests]
        work_tokens = prompts.tokens + np.where(has_end, prompts.answer_tokens, 0.0)
        priority_s = due_s + self.alpha_s_per_token * work_tokens
        alone_s = steps.alone_s(prompts)
        relegated = (view.start_s + alone_s > due_s) & (prompts.guard == 0)
        return np.lexsort((prompts.arrival_s, priority_s, relegated))
