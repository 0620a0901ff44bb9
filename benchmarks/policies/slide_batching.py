"""ProServe's SlideBatching (arXiv 2512.12928), reconstructed as a baseline.

jserve-simulate --policies=benchmarks.policies.slide_batching.SlideBatching

A step has a time budget: the least time that a request has left, of those that can
still be in time. All requests of the queue, decodes too, are urgent or normal; one is
urgent if it has less time left than the queue needs. The urgent come first, by gain per
second (fewest seconds first), the normal by time left. So the boundary between the two
slides with the load. What the budget does not reach waits, decodes too.

At hand were the abstract and the start of the paper's introduction, public notes on its
second version, and the scheduler of xLLM, by the same authors. From these come the
order, the boundary and the budget's floor (0.65 of the tightest TBT). Ours, in its
favour where it matters:

* All requests have the same gain: here is one priority.
* A request that waited `max_age_s` comes first; the figure of the paper's bound
  is not in the notes. A completion bound is paced (`Slo.pacing`); the paper has none.
* Under KV pressure the request whose next token is wanted last is recomputed. The paper
  copies its pages to the host, and back while others run; jserve has no such copy.
* At most 128 waiting requests are ranked (`Candidates`).
"""

import dataclasses

import numpy as np

from jserve_sched.planning import Candidates, PlanBuilder, SchedulerView, StepPrices
from jserve_sched.requests.facts import facts_of
from jserve_sched.steps import StepPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlideBatching:
    """Densest first among the urgent, earliest deadline first among the others.

    Attributes:
      alpha: Aggressiveness, the share of the queue's work at which a request is urgent;
        0.8 to 1 was best in the paper.
      floor: Least budget of a step, as a share of the tightest TBT.
      max_age_s: Age from which a request comes first, seconds.
    """

    alpha: float = 1.0
    floor: float = 0.65
    max_age_s: float = 60.0

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step; None if nothing can run now."""
        candidates, builder = Candidates(view), PlanBuilder(view)
        rows = candidates.rows
        if not candidates.prompts:
            candidates.add_decodes(builder)
            return builder.build()

        # What each request adds to a step, and what a step costs anyhow.
        least, beside = StepPrices(view, rows[:1]), StepPrices(view, rows)
        none = least.columns(np.zeros(1), np.zeros(1))
        constant_s = float(least.predict(least.matrix(none))[0])
        decodes_s = float(beside.predict(beside.matrix(none))[0]) - constant_s
        prompts = candidates.facts
        most_tokens = max(least.max_blocks, 1) * least.block_tokens
        num_steps = np.ceil(prompts.tokens / most_tokens)
        prompts_s = least.alone_s(prompts) - num_steps * constant_s
        num_decodes = len(rows)
        each_s = np.full(num_decodes, decodes_s / max(num_decodes, 1))
        work_s = np.maximum(np.concatenate((each_s, prompts_s)), 1e-6)

        # The budget, and the boundary.
        facts = facts_of(candidates.decodes).before(prompts)
        left_s = facts.pace_s - view.start_s
        can_wait = left_s >= work_s + constant_s
        gaps_s = [one.slo.tbt_s for one in facts.requests if one.slo.tbt_s]
        budget_s = float(left_s[can_wait].min(initial=np.inf))
        budget_s = max(budget_s, self.floor * min(gaps_s, default=0.0))
        share = 1 - constant_s / budget_s if budget_s else 0.0
        queue_s = work_s.sum() / share if share > 0 else np.inf
        is_normal = left_s >= self.alpha * queue_s

        # The order, and as much of it as the budget holds.
        is_young = view.now_s - facts.arrival_s <= self.max_age_s
        key = np.where(is_normal, left_s, work_s)
        order = np.lexsort((facts.arrival_s, key, is_normal, is_young))
        within = constant_s + np.cumsum(work_s[order]) <= budget_s
        taken = order[within & (order < num_decodes)]
        rows = [rows[place] for place in taken.tolist()]
        builder.add_decodes(rows, candidates.victims)
        ordered = prompts.take(order[order >= num_decodes] - num_decodes)
        builder.limit_time(StepPrices(view, rows).of(ordered).largest_within(budget_s))
        candidates.add_prompts(builder, ordered.requests)
        return builder.build()
