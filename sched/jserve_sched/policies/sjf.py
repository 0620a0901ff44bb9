"""`sjf`: shortest job first, with chunked prefill.

As `fcfs`, but the job with the least predicted time left comes first: the best order
for mean latency where all are equal, and the one that starves the long. SLOs are not
looked at.

A job's time is that of the tokens left of its prompt and of the expected rest of its
answer, in a batch as large as may run at once (`RequestLatency`); the length estimator
predicts the answer.
"""

import dataclasses

import numpy as np

from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.in_order import InOrder
from jserve_sched.requests.facts import Facts


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortestJobFirst(InOrder):
    """The request with the least left to do goes first."""

    def key(self, view: SchedulerView, facts: Facts) -> np.ndarray:
        """Returns the seconds that each job has left `[N]`."""
        # What a waiting job may share is not taken off.
        tokens = facts.known_tokens - facts.start * facts.is_running
        latency, batch = view.latency, np.array(view.max_num_seqs)
        left_s: np.ndarray = latency.prefill.of(batch, tokens)
        left_s += latency.decode_s(batch, facts.known_tokens, facts.answer_tokens)
        return left_s
