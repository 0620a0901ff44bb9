"""Scheduler: the state machine between requests and engine steps.

    submit -> [waiting] -> plan/dispatch -> [running] -> apply -> [finished]
                  ^                             |
                  +-------- preempted ----------+

`plan` looks and decides, `dispatch` reserves pages and advances the projected
counts, `apply` commits what the engine returned, in the order of dispatch. At most
two plans are in flight. A request's slot and pages are released when the last plan
that names it has been applied, and only a request in no such plan is preempted.
"""

import collections
import dataclasses
from typing import NamedTuple

from jserve_sched.buckets import BucketTable
from jserve_sched.ledger import KvLedger, chain_hashes
from jserve_sched.plan import Row, StepPlan, StepResult
from jserve_sched.policies.base import Policy
from jserve_sched.predictor import Predictor, StepSample
from jserve_sched.recent_load import RecentLoad
from jserve_sched.request import FinishReason, Request, RequestState
from jserve_sched.view import SchedulerView
from jserve_sched.waiting import WaitingQueue

MAX_IN_FLIGHT = 2


class Output(NamedTuple):
    """One applied token of a request, or its end.

    Attributes:
      request: whose.
      token: the token; None for an end without one.
    """

    request: Request
    token: int | None


@dataclasses.dataclass(kw_only=True, slots=True)
class SchedulerCounters:
    """Totals since start."""

    num_preemptions: int = 0
    prompt_tokens: int = 0
    prefix_hit_tokens: int = 0
    generated_tokens: int = 0


class Scheduler:
    """Owns requests, slots and the ledger; asks the policy what to run.

    Attributes:
      policy: decides the order.
      buckets: the compiled shapes; see `use_buckets`.
      ledger: the KV pages.
      predictor: prices steps.
      counters: totals since start.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        buckets: BucketTable,
        ledger: KvLedger,
        predictor: Predictor,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
    ):
        if max_num_seqs > buckets.max_rows:
            raise ValueError(
                f"max_num_seqs={max_num_seqs} exceeds the largest row edge "
                f"{buckets.max_rows}"
            )
        least = buckets.fit(max_num_seqs, 1).num_rows + (
            buckets.block_edges[1] * buckets.block_tokens
        )
        if max_num_batched_tokens < least:
            raise ValueError(
                f"max_num_batched_tokens={max_num_batched_tokens} leaves no room for "
                f"the smallest prefill beside {max_num_seqs} rows: at least {least}"
            )
        if ledger.page_size % buckets.block_tokens:
            raise ValueError(
                f"page_size={ledger.page_size} is not a multiple of "
                f"block_tokens={buckets.block_tokens}"
            )
        self.policy = policy
        self.buckets = buckets
        self.ledger = ledger
        self.predictor = predictor
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self.counters = SchedulerCounters()
        self._max_num_batched_tokens = max_num_batched_tokens
        self._requests: dict[str, Request] = {}  # waiting and running
        self._waiting = WaitingQueue()
        # Who hold a slot, by admission. Not by id: a client may use one again while
        # the steps of a cancelled request are in flight.
        self._holders: dict[int, Request] = {}
        self._free_slots = list(range(max_num_seqs))[::-1]
        self._in_flight: collections.deque[StepPlan] = collections.deque()
        self._next_step_id = 0
        self._recent = RecentLoad()

    def use_buckets(self, table: BucketTable) -> None:
        """Plans with other shapes from the next plan on; those in flight keep theirs.

        Args:
          table: has the largest edges of the table before it, and blocks of the same
            size, so what was admitted fits still.

        Raises:
          ValueError: if it does not.
        """
        for name in ("max_rows", "max_blocks", "block_tokens"):
            old, new = getattr(self.buckets, name), getattr(table, name)
            if new != old:
                raise ValueError(f"a table with {name}={new} cannot replace {old}")
        self.buckets = table

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that hold a slot and pages."""
        return len(self._holders)

    @property
    def num_in_flight(self) -> int:
        """Plans dispatched and not yet applied."""
        return len(self._in_flight)

    @property
    def has_work(self) -> bool:
        """Whether a request is live or a plan is in flight."""
        return bool(self._requests or self._in_flight or self._holders)

    def check_fits(self, num_prompt_tokens: int, max_tokens: int) -> None:
        """Checks that a request of this size can ever run.

        Raises:
          ValueError: if it exceeds the context or the KV pool.
        """
        total = num_prompt_tokens + max_tokens
        if total > self.max_model_len:
            raise ValueError(
                f"{num_prompt_tokens} prompt tokens and max_tokens={max_tokens} are "
                f"{total} tokens, over the context of {self.max_model_len}"
            )
        capacity = self.ledger.num_pages * self.ledger.page_size
        if self.ledger.pages_for(total) > self.ledger.num_pages:
            raise ValueError(
                f"{num_prompt_tokens} prompt tokens and max_tokens={max_tokens} are "
                f"{total} tokens, over the KV pool of {capacity}"
            )

    def submit(self, request: Request) -> None:
        """Takes a request in.

        Raises:
          ValueError: if it can never run, or its id is in use.
        """
        if request.request_id in self._requests:
            raise ValueError(f"request id {request.request_id!r} is in use")
        self.check_fits(request.num_prompt_tokens, request.max_tokens)
        if self.ledger.enable_prefix_caching:
            request.page_hashes = chain_hashes(
                request.prompt_tokens, self.ledger.page_size
            )
        self._requests[request.request_id] = request
        self._recent.add_request(request)
        self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        request.state = RequestState.WAITING
        self._waiting.add(request)

    def view(self, now_s: float) -> SchedulerView:
        """Returns the snapshot that the policy sees."""
        return SchedulerView(
            now_s=now_s,
            in_flight_s=sum(plan.predicted_s for plan in self._in_flight),
            step_id=self._next_step_id,
            running=[one for one in self._holders.values() if one.wants_more],
            queue=self._waiting,
            num_free_slots=len(self._free_slots),
            ledger=self.ledger,
            buckets=self.buckets,
            predictor=self.predictor,
            prefill_tokens_per_s=self._recent.prefill_tokens_per_s,
            tight_ttft_s=self._recent.tight_ttft_s,
            max_num_batched_tokens=self._max_num_batched_tokens,
        )

    def plan(self, now_s: float) -> StepPlan | None:
        """Returns the next step, changing nothing; None if nothing can run now."""
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            return None
        return self.policy.plan(self.view(now_s))

    def dispatch(self, plan: StepPlan, now_s: float) -> None:
        """Commits to a plan: preempts, admits, reserves pages, advances counts."""
        assert plan.step_id == self._next_step_id, "plans are dispatched as made"
        assert len(self._in_flight) < MAX_IN_FLIGHT
        self._next_step_id += 1
        for victim in plan.preempted:
            self._preempt(victim)
        # All shared pages first: allocation may evict pages that nobody holds.
        for row in plan.chunks:
            if row.request.state is RequestState.WAITING:
                self._admit(row, now_s)
        for row in (*plan.decodes, *plan.chunks):
            request = row.request
            missing = self.ledger.pages_for(row.stop) - len(request.pages)
            if missing > 0:
                request.pages.extend(self.ledger.allocate(missing))
            request.num_dispatched = row.stop
            request.num_pending += row.samples
            request.num_in_flight += 1
        self._in_flight.append(plan)

    def _admit(self, row: Row, now_s: float) -> None:
        request = row.request
        num_shared = row.start // self.ledger.page_size
        shared = self.ledger.find_prefix(request.page_hashes[:num_shared])
        assert len(shared) == num_shared, "a page the plan relied on is gone"
        self.ledger.share(shared)
        request.pages = shared
        request.num_published_pages = num_shared
        request.state = RequestState.RUNNING
        request.slot = self._free_slots.pop()
        if request.first_scheduled_s is None:
            request.first_scheduled_s = now_s
            request.num_cached_tokens = min(row.start, request.num_prompt_tokens)
            self.counters.prompt_tokens += request.num_prompt_tokens
            self.counters.prefix_hit_tokens += request.num_cached_tokens
        self._waiting.remove(request)
        self._holders[id(request)] = request

    def _preempt(self, victim: Request) -> None:
        assert victim.num_in_flight == 0 and victim.num_pending == 0
        self._let_go(victim)
        victim.num_dispatched = 0
        victim.num_preemptions += 1
        self.counters.num_preemptions += 1
        self._enqueue(victim)

    def _let_go(self, request: Request) -> None:
        """Takes the slot and the pages back."""
        assert request.slot is not None
        self.ledger.release(request.pages)
        request.pages = []
        request.num_published_pages = 0
        self._free_slots.append(request.slot)
        request.slot = None
        del self._holders[id(request)]

    def apply(self, result: StepResult) -> list[Output]:
        """Commits the oldest plan in flight.

        Args:
          result: its tokens, one for each row that samples, in plan order, and its
            duration, from which the predictor learns.

        Returns:
          The new tokens of requests that are still wanted, in plan order.
        """
        plan = self._in_flight.popleft()
        self.predictor.update(StepSample(plan.features, result.duration_s))
        self._recent.add_step(plan, result.duration_s)
        outputs = []
        tokens = iter(result.tokens)
        for row in (*plan.decodes, *plan.chunks):
            request = row.request
            request.num_in_flight -= 1
            if row.samples:
                token = next(tokens)
                request.num_pending -= 1
                if request.state is not RequestState.FINISHED:
                    self._take_token(request, token)
                    outputs.append(Output(request, token))
            if request.state is not RequestState.FINISHED:
                self._publish(request, row.stop)
            elif request.num_in_flight == 0 and request.slot is not None:
                self._let_go(request)
        return outputs

    def _take_token(self, request: Request, token: int) -> None:
        request.output_tokens.append(token)
        self.counters.generated_tokens += 1
        num_outputs = len(request.output_tokens)
        if token in request.stop_token_ids and num_outputs > request.min_tokens:
            self._finish(request, FinishReason.STOP)
        elif num_outputs >= request.max_tokens:
            self._finish(request, FinishReason.LENGTH)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        request.state = RequestState.FINISHED
        request.finish_reason = reason
        del self._requests[request.request_id]

    def _publish(self, request: Request, num_written: int) -> None:
        """Lets others find the pages that are full of written, known tokens."""
        if not self.ledger.enable_prefix_caching:
            return
        page_size = self.ledger.page_size
        num_full = num_written // page_size
        if num_full <= request.num_published_pages:
            return
        known = request.page_hashes
        if num_full > len(known):
            start = len(known) * page_size
            new = request.known_tokens(start, num_full * page_size)
            known.extend(chain_hashes(new, page_size, known))
        for index in range(request.num_published_pages, num_full):
            self.ledger.publish(request.pages[index], known[index])
        request.num_published_pages = num_full

    def cancel(self, request_id: str) -> Output | None:
        """Ends a request early; None if it is not live.

        A running one yields no further token; its pages come back once no plan in
        flight names it.
        """
        request = self._requests.get(request_id)
        if request is None:
            return None
        if request.state is RequestState.WAITING:
            self._waiting.remove(request)
        self._finish(request, FinishReason.CANCELLED)
        if request.slot is not None and request.num_in_flight == 0:
            self._let_go(request)
        return Output(request, None)

    def num_steps_alike(self, plan: StepPlan) -> int:
        """Returns how many steps can only repeat a plan that was just applied.

        That is so while its rows are all that runs, nobody waits, none of them ends
        and pages last; then any policy that lets every decode run has no choice. The
        step after which the first one ends is the last such step. For simulation: a
        new arrival changes everything.
        """
        if plan.chunks or self._waiting or self._in_flight:
            return 0
        if len(self._holders) != len(plan.decodes):
            return 0
        requests = [row.request for row in plan.decodes]
        if any(one.stop_token_ids for one in requests):
            return 0

        def need(num_steps: int) -> int:
            pages_for = self.ledger.pages_for
            return sum(
                max(pages_for(one.num_dispatched + num_steps) - len(one.pages), 0)
                for one in requests
            )

        least, most = (
            0,
            min(one.max_tokens - len(one.output_tokens) for one in requests),
        )
        free = self.ledger.num_available
        if need(most) <= free:
            return most
        while most - least > 1:  # need(least) <= free < need(most)
            middle = (least + most) // 2
            if need(middle) <= free:
                least = middle
            else:
                most = middle
        return least

    def repeat_decodes(self, plan: StepPlan, num_steps: int) -> list[Request]:
        """Runs a decode-only plan again and again, every token being 0.

        As plan, dispatch and apply would, step by step; the predictor is left to
        the caller. For simulation.

        Args:
          plan: the one applied last.
          num_steps: at most `num_steps_alike(plan)`.

        Returns:
          Its requests; those with a finish reason have ended.
        """
        self._next_step_id += num_steps
        requests = [row.request for row in plan.decodes]
        for request in requests:
            request.num_dispatched += num_steps
            missing = self.ledger.pages_for(request.num_dispatched) - len(request.pages)
            if missing > 0:
                request.pages.extend(self.ledger.allocate(missing))
            request.output_tokens.extend([0] * num_steps)
            self.counters.generated_tokens += num_steps
        for request in requests:
            if len(request.output_tokens) >= request.max_tokens:
                self._finish(request, FinishReason.LENGTH)
                self._let_go(request)
        return requests

    def check_integrity(self) -> None:
        """Checks pages, slots and counts against each other.

        Raises:
          AssertionError: if anything is lost, freed early or held wrongly.
        """
        self.ledger.check_integrity([one.pages for one in self._holders.values()])
        slots = [one.slot for one in self._holders.values() if one.slot is not None]
        assert sorted([*slots, *self._free_slots]) == list(range(self.max_num_seqs))
        named = collections.Counter(
            id(row.request)
            for plan in self._in_flight
            for row in (*plan.decodes, *plan.chunks)
        )
        for request in self._holders.values():
            assert request.num_in_flight == named[id(request)]
            assert request.num_dispatched <= len(request.pages) * self.ledger.page_size
            if request.state is RequestState.FINISHED:
                assert request.num_in_flight, f"{request.request_id} keeps its pages"
        for request in self._waiting.requests:
            assert request.slot is None and not request.pages
        running = [
            one.request_id
            for one in self._holders.values()
            if one.state is RequestState.RUNNING
        ]
        waiting = [one.request_id for one in self._waiting.requests]
        assert sorted(self._requests) == sorted([*waiting, *running])
