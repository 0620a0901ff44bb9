"""LatencySource: where a policy takes the times of whole requests from."""

from jserve_sched.planning.view import SchedulerView
from jserve_sched.timing.request_latency import (
    RequestLatency,
    fit_bilinear,
    priced_points,
)

_REFRESH_STEPS = 512  # after which times are fitted again


class LatencySource:
    """The request latency of one engine: a given one, or one fitted to its predictor.

    A fit remembers what it was made for. It is made when it is first asked for, and
    again at each multiple of `_REFRESH_STEPS` or with other buckets or another
    predictor.
    """

    def __init__(self, fixed: RequestLatency | None = None):
        self._fixed = fixed
        self._found: RequestLatency | None = None
        self._made_for: tuple[object, object, int] = (None, None, 0)

    def at(self, view: SchedulerView) -> RequestLatency:
        """Returns the latency to plan the step of this snapshot with."""
        if self._fixed is not None:
            return self._fixed
        made_for = (view.predictor, view.buckets, view.step_id // _REFRESH_STEPS)
        if self._found is None or made_for != self._made_for:
            page_size = view.ledger.page_size
            points = priced_points(
                view.predictor,
                view.buckets,
                page_size=page_size,
                num_kv_tokens=view.ledger.num_pages * page_size,
                max_num_batched_tokens=view.max_num_batched_tokens,
            )
            prefill, decode = map(fit_bilinear, points)
            self._found = RequestLatency(prefill=prefill, decode=decode)
            self._made_for = made_for
        return self._found
