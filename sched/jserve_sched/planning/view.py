"""SchedulerView: all that a policy may look at when it plans a step."""

import dataclasses
from collections.abc import Sequence

from jserve_sched.buckets.table import BucketTable
from jserve_sched.memory.ledger import KvLedger
from jserve_sched.planning.outlook import Outlook
from jserve_sched.requests.request import Request
from jserve_sched.requests.waiting import WaitingQueue
from jserve_sched.timing.predictor import Predictor
from jserve_sched.timing.request_latency import LatencySource, RequestLatency


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerView:
    """A projected snapshot: plans in flight count as if already applied.

    Read only. Policies call no method that changes a request or the ledger, so
    that the same snapshot gives the same plan.

    Attributes:
      now_s: clock seconds.
      in_flight_s: predicted duration of the steps in flight.
      running: requests that hold a slot and want more tokens, by admission.
      queue: requests without a slot, by arrival.
      prefill_tokens_per_s: see `RecentLoad`; None before the first.
      tight_ttft_s: see `RecentLoad`; infinite if no request wanted a first token.
      max_num_batched_tokens: most token positions in a step.
      max_num_seqs: most requests that run at once.
      epoch: counts requests that joined the queue or ended; while it stands still, a
        plan for the queue is as good as it was.
      outlook: what `LookaheadPolicy.revise` returned last; None before the first.
      latency_source: says how long whole requests take; see `request_latency`.
    """

    now_s: float
    in_flight_s: float
    step_id: int
    running: Sequence[Request]
    queue: WaitingQueue
    num_free_slots: int
    ledger: KvLedger
    buckets: BucketTable
    predictor: Predictor
    prefill_tokens_per_s: float | None
    tight_ttft_s: float
    max_num_batched_tokens: int
    max_num_seqs: int
    epoch: int
    outlook: Outlook | None
    latency_source: LatencySource

    @property
    def start_s(self) -> float:
        """When the planned step should start: once the steps in flight have ended."""
        return self.now_s + self.in_flight_s

    @property
    def request_latency(self) -> RequestLatency:
        """How long whole requests take on this machine, by batch size and lengths."""
        return self.latency_source.at(
            self.step_id,
            self.predictor,
            self.buckets,
            ledger=self.ledger,
            max_num_batched_tokens=self.max_num_batched_tokens,
        )

    @property
    def waiting(self) -> Sequence[Request]:
        """Requests without a slot, by arrival."""
        return self.queue.requests

    @property
    def admissible(self) -> Sequence[Request]:
        """Waiting requests, if a slot is free; no other could be admitted."""
        return self.waiting if self.num_free_slots else ()
