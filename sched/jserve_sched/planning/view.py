"""SchedulerView: all that a policy may look at when it plans a step."""

import dataclasses
import functools
from collections.abc import Collection, Sequence

import numpy as np

from jserve_sched.buckets.table import BucketTable
from jserve_sched.memory.ledger import KvLedger
from jserve_sched.memory.waiting import WaitingQueue
from jserve_sched.requests.facts import Facts, facts_of
from jserve_sched.requests.request import Request
from jserve_sched.timing.predictor import Predictor
from jserve_sched.timing.request_latency import (
    RequestLatency,
    fit_bilinear,
    priced_points,
)

_REFRESH_STEPS = 512  # after which the times of whole requests are fitted again


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerView:
    """A projected snapshot: plans in flight count as if already applied.

    Read only: a policy calls no method that changes a request, the queue or the ledger.

    Attributes:
      now_s: Time of the snapshot, clock seconds.
      in_flight_s: Predicted duration of the steps in flight.
      step_id: Number of the step to be planned, from 0.
      running: Requests that hold a slot and want more tokens, by admission.
      queue: Requests without a slot, by arrival.
      held: Those of them that may not begin now; see `admission`.
      prefill_tokens_per_s: See `RecentLoad`; None before the first such step.
      tight_ttft_s: See `RecentLoad`; infinite if no request wanted a first token.
      max_num_batched_tokens: Most token positions in a step.
      max_num_seqs: Most requests that run at once.
    """

    now_s: float
    in_flight_s: float
    step_id: int
    running: Sequence[Request]
    queue: WaitingQueue
    held: Collection[Request] = ()
    num_free_slots: int
    ledger: KvLedger
    buckets: BucketTable
    predictor: Predictor
    latencies: "LatencySource"
    prefill_tokens_per_s: float | None
    tight_ttft_s: float
    max_num_batched_tokens: int
    max_num_seqs: int

    @property
    def start_s(self) -> float:
        """When the planned step should start: once the steps in flight have ended."""
        return self.now_s + self.in_flight_s

    @property
    def latency(self) -> RequestLatency:
        """Times of whole requests."""
        return self.latencies.at(self)

    @functools.cached_property
    def begun(self) -> Sequence[Request]:
        """Running requests with more than one token to compute: of a prompt."""
        return [one for one in self.running if one.num_remaining_tokens > 1]

    @functools.cached_property
    def decodes(self) -> list[Request]:
        """Running requests with one token to compute."""
        begun = set(self.begun)
        return [one for one in self.running if one not in begun]

    @functools.cached_property
    def waiting(self) -> Sequence[Request]:
        """Requests without a slot that may begin, by arrival."""
        if not self.held:
            return self.queue.requests
        return [one for one in self.queue.requests if one not in self.held]

    @property
    def admissible(self) -> Sequence[Request]:
        """Waiting requests, if a slot is free; no other could be admitted."""
        return self.waiting if self.num_free_slots else ()

    @property
    def facts(self) -> Facts:
        """Facts of the admissible requests, kept from step to step."""
        facts = self.queue.facts if self.num_free_slots else facts_of(())
        if not self.held:
            return facts
        is_free = [one not in self.held for one in facts.requests]
        return facts.take(np.flatnonzero(is_free))

    @property
    def most_offered(self) -> int:
        """Waiting requests of an order that a plan looks at: one more than slots."""
        return self.num_free_slots + 1


class LatencySource:
    """Times of whole requests, fitted when first asked and again for another view."""

    def __init__(self) -> None:
        self._found: RequestLatency | None = None
        self._made_for: tuple[object, object, int] = (None, None, 0)

    def at(self, view: SchedulerView) -> RequestLatency:
        """Returns the times to plan a step with."""
        made_for = (view.predictor, view.buckets, view.step_id // _REFRESH_STEPS)
        if self._found is None or made_for != self._made_for:
            points = priced_points(
                view.predictor,
                view.buckets,
                page_size=view.ledger.page_size,
                num_kv_tokens=view.ledger.num_pages * view.ledger.page_size,
                max_num_batched_tokens=view.max_num_batched_tokens,
            )
            prefill, decode = map(fit_bilinear, points)
            self._found = RequestLatency(prefill=prefill, decode=decode)
            self._made_for = made_for
        return self._found
