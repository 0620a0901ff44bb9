"""Assignment of requests to one of several engines.

An assignment sees a snapshot of each engine, in which a running step has not ended yet,
so it knows no more than a router in front of real engines could know. Of equal engines
it takes the first.

How the paper on scheduling by simulated annealing (arXiv 2504.14966) spreads requests
over engines could not be determined. That a request is assigned first and then planned
by its engine alone, and both measures below, are choices of jserve. `N` is the number
of requests.

Both measures look at every request of an engine, so an assignment takes about one
(`kv`) or two (`finish`) microseconds for each.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.request import Request

Assignment = Callable[[Sequence[SchedulerView]], int]
"""Returns the index of the engine that gets the next request, from the snapshots of all
engines just before the request arrives."""


def uncommitted_pages(view: SchedulerView) -> int:
    """Returns the KV pages that no present request will need; below 0 in a backlog.

    They are the free pages, less those that running and waiting requests will take
    until they reach their predicted lengths.
    """
    pages_for = view.ledger.pages_for
    wanted = sum(
        max(
            pages_for(one.num_projected_tokens + one.expected_tokens_left)
            - len(one.pages),
            0,
        )
        for one in (*view.running, *view.waiting)
    )
    return view.ledger.num_available - wanted


def work_s(view: SchedulerView) -> float:
    """Returns the predicted seconds until an engine has finished all its requests.

    Each request takes the time that it would in a batch of as many requests as can run
    together, and all slots share the sum evenly, even if some are unused. The step in
    flight counts in full, since its progress is not known outside.
    """
    requests = (*view.running, *view.waiting)
    if not requests:
        return view.in_flight_s
    batch = min(len(requests), view.max_num_seqs)
    latency = view.latency
    facts = np.array([_left(one) for one in requests], np.float64)  # [N, 3]
    prompts, contexts, outputs = facts.T
    prefilled = prompts > 0
    prefill_s = latency.prefill.of(np.array(batch), prompts[prefilled])
    decode_s = latency.decode_s(np.array(batch), contexts, outputs)
    total_s = float(np.sum(prefill_s)) + float(np.sum(decode_s))
    return view.in_flight_s + total_s / view.max_num_seqs


def _left(request: Request) -> tuple[int, int, int]:
    """Returns the work left: prompt tokens, context, and output tokens at that context.

    A prefill gives the first output token, so a request that decodes counts one output
    token more than it lacks.
    """
    left = request.expected_tokens_left
    if request.num_remaining_tokens == 1:
        return 0, request.num_projected_tokens - 1, left + 1
    return request.num_remaining_tokens, request.num_projected_tokens, left


def _most_free_kv(views: Sequence[SchedulerView]) -> int:
    return int(np.argmax([uncommitted_pages(view) for view in views]))


def _least_finish(views: Sequence[SchedulerView]) -> int:
    # The new request would take about the same time on each engine: it is left out.
    return int(np.argmin(list(map(work_s, views))))


def _round_robin(views: Sequence[SchedulerView]) -> int:
    """Gives requests to each engine in turn: the baseline."""
    return sum(view.queue.num_arrived for view in views) % len(views)


ASSIGNMENTS: dict[str, Assignment] = {
    "kv": _most_free_kv,
    "finish": _least_finish,
    "round_robin": _round_robin,
}
