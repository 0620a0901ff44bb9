"""`sjf`: shortest job first, with chunked prefill.

As `fcfs`, but the job with the least predicted time left comes first: the best order
for mean latency where all are equal, and the one that starves the long. SLOs are not
looked at. It is also where simulated annealing starts from, without the search.

A job's time is that of the tokens left of its prompt and of the expected rest of its
answer, in a batch as large as may run at once (`RequestLatency`); the length estimator
predicts the answer. `by=prompt` counts the tokens left of the prompt alone, as a server
does that knows nothing of answers. Under KV pressure the request with most left is
preempted.
"""

import dataclasses
from typing import Literal

import numpy as np

from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.in_order import InOrder, rank
from jserve_sched.requests.facts import Facts
from jserve_sched.steps.plan import StepPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortestJobFirst(InOrder):
    """The request with the least left to do goes first.

    Attributes:
      by: Measure of a job: e2e, predicted time of the whole rest, or prompt, tokens
        left of the prompt.
    """

    by: Literal["e2e", "prompt"] = "e2e"

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        ordered = rank(view, lambda facts: self.key(view, facts))
        return self.plan_in_order(view, ordered)

    def key(self, view: SchedulerView, facts: Facts) -> np.ndarray:
        """Returns how much each job has left `[N]`, seconds or tokens."""
        # What a waiting job may share is not taken off.
        left: np.ndarray = facts.known_tokens - facts.start * facts.is_running
        if self.by == "e2e":
            latency, batch = view.latency, np.array(view.max_num_seqs)
            decode_s = latency.decode_s(batch, facts.known_tokens, facts.answer_tokens)
            left = latency.prefill.of(batch, left) + decode_s
        return left
