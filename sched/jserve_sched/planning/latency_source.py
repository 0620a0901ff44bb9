"""LatencySource: the times of whole requests, fitted to a scheduler's predictor."""

from jserve_sched.buckets.table import BucketTable
from jserve_sched.memory.ledger import KvLedger
from jserve_sched.timing.predictor import Predictor
from jserve_sched.timing.request_latency import (
    RequestLatency,
    fit_bilinear,
    priced_points,
)

_REFRESH_STEPS = 512  # after which times are fitted again


class LatencySource:
    """Fits when it is first asked, and again after 512 steps or for other arguments."""

    def __init__(self) -> None:
        self._found: RequestLatency | None = None
        self._made_for: tuple[object, object, int] = (None, None, 0)

    def at(
        self,
        step_id: int,
        predictor: Predictor,
        buckets: BucketTable,
        *,
        ledger: KvLedger,
        max_num_batched_tokens: int,
    ) -> RequestLatency:
        """Returns the latency to plan a step with."""
        made_for = (predictor, buckets, step_id // _REFRESH_STEPS)
        if self._found is None or made_for != self._made_for:
            points = priced_points(
                predictor,
                buckets,
                page_size=ledger.page_size,
                num_kv_tokens=ledger.num_pages * ledger.page_size,
                max_num_batched_tokens=max_num_batched_tokens,
            )
            prefill, decode = map(fit_bilinear, points)
            self._found = RequestLatency(prefill=prefill, decode=decode)
            self._made_for = made_for
        return self._found
