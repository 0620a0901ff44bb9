"""What became of an answer's SLO, in its `usage`."""

import itertools
from collections.abc import Sequence
from typing import Any

from jserve.server.generation import Generation


def slo_usage(generations: Sequence[Generation]) -> dict[str, Any]:
    """Returns the field `slo`, the worst of all outputs; nothing without an SLO.

    Times are seconds: in the queue, to the first token, and the longest between two.
    """
    outputs = [one for one in generations if not one.request.slo.is_best_effort]
    if not outputs:
        return {}
    queue_s, ttft_s, gap_s = [0.0], [0.0], [0.0]
    for one in outputs:
        request, times_s = one.request, one.times_s
        if request.first_scheduled_s is not None:
            queue_s.append(request.first_scheduled_s - request.arrival_s)
        if times_s:
            ttft_s.append(times_s[0] - request.arrival_s)
        gap_s += [later - time_s for time_s, later in itertools.pairwise(times_s)]
    times = {"queue_s": queue_s, "ttft_s": ttft_s, "worst_gap_s": gap_s}
    return {
        "slo": {
            "attained": all(one.is_attained for one in outputs),
            **{name: round(max(values), 6) for name, values in times.items()},
        }
    }
