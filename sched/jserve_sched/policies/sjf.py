"""`sjf`: shortest job first, with chunked prefill.

As `fcfs`, but the job with the least predicted time left comes first: the best order
for mean latency where all are equal, and the one that starves the long. SLOs are not
looked at. It is also where simulated annealing starts from, without the search.

A job's time is that of the tokens left of its prompt and of the expected rest of its
answer, in a batch as large as may run at once (`RequestLatency`); the length estimator
predicts the answer. `by=prompt` counts the tokens left of the prompt alone, as a server
does that knows nothing of answers. Under KV pressure the
request with most left is preempted.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

from jserve_sched.planning.latency_source import LatencySource
from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.in_order import InOrder
from jserve_sched.requests.request import Request
from jserve_sched.steps.plan import StepPlan
from jserve_sched.timing.request_latency import RequestLatency

_Key = tuple[float, float, str]


def _tokens_left(request: Request) -> _Key:
    return (request.num_remaining, request.arrival_s, request.request_id)


def _time_left(latency: RequestLatency, batch: int) -> Callable[[Request], _Key]:
    """Returns a key of the seconds left in a batch, less what is equal for all jobs.

    The closed sum of `RequestLatency.exec_s`, for one request and in plain numbers: a
    queue of ten thousand is sorted by it.
    """
    prefill, decode = latency.prefill, latency.decode
    prompt_token_s = prefill.both * batch + prefill.length
    step_s = decode.batch * batch + decode.base
    context_token_s = decode.both * batch + decode.length

    def key(request: Request) -> _Key:
        num_steps = request.expected_tokens_left - 1
        mean_context = request.num_projected + (num_steps - 1) / 2
        time_s = prompt_token_s * request.num_remaining
        time_s += num_steps * (step_s + context_token_s * mean_context)
        return (time_s, request.arrival_s, request.request_id)

    return key


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortestJobFirst(InOrder):
    """The request with the least left to do goes first.

    Attributes:
      by: Measure of a job: e2e, predicted time of the whole rest, or prompt, tokens
        left of the prompt.
      latency: Times of whole requests.
    """

    by: Literal["e2e", "prompt"] = "e2e"
    latency: LatencySource = dataclasses.field(
        default_factory=LatencySource, compare=False, repr=False
    )

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        if self.by == "prompt":
            return self.plan_by(view, _tokens_left)
        key = _time_left(self.latency.at(view), view.max_num_seqs)
        return self.plan_by(view, key)
