"""`laxity`: least laxity first, with chunked prefill.

As `edf`, but requests go by how long they could still wait for their deadline: their
laxity, the time to the deadline less the predicted time still needed. A long prompt or
a long answer must start sooner than a short one due at the same time. The rule is an
old one of real-time scheduling, and MindIE documents it for the choice between a
prefill and a decode step; this form of it is ours:

* The next token's deadline needs the rest of the prompt, computed alone, or one decode
  step; a completion bound needs that and the expected rest of the answer, decoded
  beside all that run now. With both, the lesser laxity counts.
* A prompt that was partly computed, or is partly shared, is priced as a prompt of the
  tokens left.
* A request with a laxity below 0 will be late whatever is done. These go behind all
  others, by arrival, so that one lost request does not make the next one late too; a
  guarded request stays where its laxity puts it.
* A request without an SLO has infinite laxity: before the late, after all others.

Under KV pressure the last in this order is preempted and recomputed.
"""

import dataclasses
import math

import numpy as np

from jserve_sched.planning.latency_source import LatencySource
from jserve_sched.planning.step_prices import remaining_prompts
from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.in_order import InOrder, column, sort_by
from jserve_sched.requests.request import Request, RequestState
from jserve_sched.steps.plan import StepPlan
from jserve_sched.timing.request_latency import RequestLatency


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastLaxityFirst(InOrder):
    """The request that can wait the shortest goes first.

    Attributes:
      latency: Times of whole requests.
    """

    latency: LatencySource = dataclasses.field(
        default_factory=LatencySource, compare=False, repr=False
    )

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        requests = [*view.running, *view.admissible]
        if not requests:
            return None
        wait_s = laxities_s(view, requests, self.latency.at(view))
        guard = column(request.guard for request in requests)
        arrival_s = column(request.arrival_s for request in requests)
        is_lost = (wait_s < 0.0) & (guard == 0.0)
        keys = (arrival_s, np.where(is_lost, 0.0, wait_s), is_lost)
        return self.plan_in_order(view, sort_by(requests, *keys))


def laxities_s(
    view: SchedulerView, requests: list[Request], latency: RequestLatency
) -> np.ndarray:
    """Returns how long each of the view's requests could wait and attain its SLO.

    Returns:
      `[N]` seconds from `view.start_s` on.
    """
    next_due_s = column(request.deadline_s for request in requests)
    ttlts_s = [request.slo.ttlt_s for request in requests]
    ttlt_s = column(math.inf if one is None else one for one in ttlts_s)
    end_due_s = column(request.arrival_s for request in requests) + ttlt_s
    known_tokens = column(request.num_projected_tokens for request in requests)
    tokens_left = column(request.expected_tokens_left for request in requests)
    prompt_tokens = remaining_prompts(view, requests).tokens
    is_running = column(request.state is RequestState.RUNNING for request in requests)
    is_decode = (is_running > 0.0) & (prompt_tokens == 1.0)
    alone, together = np.ones(1), np.full(1, max(len(view.running), 1.0))
    next_s = np.where(
        is_decode,
        latency.decode_s(together, known_tokens, np.full(1, 2.0)),
        latency.prefill.of(alone, prompt_tokens),
    )
    rest_s = latency.decode_s(together, known_tokens, tokens_left)
    wait_s: np.ndarray = np.minimum(next_due_s - next_s, end_due_s - next_s - rest_s)
    return wait_s - view.start_s
