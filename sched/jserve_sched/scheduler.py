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
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from jserve_sched.admission import MAX_AGE_S, Admission, behind, in_tiers
from jserve_sched.buckets.table import BucketTable
from jserve_sched.memory.ledger import KvLedger, chain_hashes
from jserve_sched.memory.slots import Holders
from jserve_sched.memory.waiting import WaitingQueue
from jserve_sched.planning.forecast import Forecaster
from jserve_sched.planning.queue_pass import QueuePass, Turns
from jserve_sched.planning.recent_load import RecentLoad
from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.planning.view import LatencySource, SchedulerView
from jserve_sched.policies.base import Policy, order_of
from jserve_sched.requests.facts import Facts
from jserve_sched.requests.forecast import Forecast
from jserve_sched.requests.limits import RequestLimits
from jserve_sched.requests.output_lengths import (
    LengthBook,
    LengthErrors,
    LengthEstimator,
    MaxTokens,
)
from jserve_sched.requests.request import FinishReason, Request, RequestState
from jserve_sched.steps.plan import Row, StepPlan, StepResult
from jserve_sched.timing.predictor import Predictor, StepSample

MAX_IN_FLIGHT = 2


class PolicyError(Exception):
    """A policy failed, or returned something else than a plan."""


class Output(NamedTuple):
    """One applied token of a request; None if the request ended without one."""

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
      limits: Limits of a single request.
      admission: Decides which waiting requests may begin.
      policy: Policy that plans every step, an object that no other scheduler uses.
      counters: Totals since start.
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
        lengths: LengthEstimator | None = None,
    ):
        """Makes a scheduler without requests.

        `lengths` predicts how long answers will be; None takes `max_tokens`.

        Raises:
          ValueError: If a step that may be planned has no bucket.
        """
        if max_num_seqs > buckets.max_rows:
            raise ValueError(
                f"max_num_seqs={max_num_seqs} exceeds the largest row edge "
                f"{buckets.max_rows}"
            )
        least = buckets.fit(max_num_seqs, 1).num_tokens
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
        self.admission = Admission()
        self.buckets = buckets
        self.ledger = ledger
        self.predictor = predictor
        self.limits = RequestLimits(max_model_len, ledger.num_pages * ledger.page_size)
        self.max_num_seqs = max_num_seqs
        self.counters = SchedulerCounters()
        self._max_num_batched_tokens = max_num_batched_tokens
        self._requests: dict[str, Request] = {}  # waiting and running
        self._waiting = WaitingQueue(ledger)
        self._holders = Holders(ledger, max_num_seqs)
        self._in_flight: collections.deque[StepPlan] = collections.deque()
        self._held: Collection[Request] = ()
        self._next_step_id = 0
        self._recent = RecentLoad()
        self._latencies = LatencySource()
        self._forecaster = Forecaster()
        self._pass: tuple[tuple[float, int, int], QueuePass] | None = None
        self._free_s = 0.0  # when the plans in flight will have ended, clock seconds
        self._lengths = LengthBook(lengths or MaxTokens())

    def use_buckets(self, table: BucketTable) -> None:
        """Plans with other buckets from the next plan on.

        Raises:
          ValueError: If the largest edges or the block's size differ, so that what was
            admitted might not fit.
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
    def length_errors(self) -> Mapping[str, LengthErrors]:
        """Predicted output lengths against actual ones, by service class."""
        return self._lengths.errors

    @property
    def has_work(self) -> bool:
        """Whether a request is live or a plan is in flight."""
        return bool(self._requests or self._in_flight or self._holders)

    def submit(self, request: Request) -> None:
        """Takes a request in.

        Raises:
          TooLongError: If it can never run.
          ValueError: If its id is in use.
        """
        if request.request_id in self._requests:
            raise ValueError(f"request id {request.request_id!r} is in use")
        self.limits.check(request.num_prompt_tokens, request.max_tokens)
        self._prepare(request)
        self._requests[request.request_id] = request
        self._enqueue(request)
        self._recent.add_request(request)
        self.admission.enter(request)
        self._forecaster.enter(request)

    def _prepare(self, request: Request) -> None:
        """Finds what is known of a request that was not asked about before."""
        if request.forecast is not None:
            return
        if self.ledger.enable_prefix_caching and not request.page_hashes:
            request.page_hashes = chain_hashes(
                request.prompt_tokens, self.ledger.page_size
            )
        self._lengths.enter(request)

    def forecast(
        self, request: Request, now_s: float, others: Sequence[Request] = ()
    ) -> Forecast:
        """Returns when a request's tokens should come, and its chance of attainment.

        It may wait already, and then the pass over the queue is shared with all others
        that are asked about at the same time; or not be submitted yet, and then it is
        taken to arrive now, after `others` that are not submitted either. Nothing but
        `request` changes: the first forecast stays as its `forecast`.

        Raises:
          KeyError: If its first token is computed already.
        """
        is_new = self._requests.get(request.request_id) is not request
        state = (now_s, self._next_step_id, self._waiting.num_arrived)
        found = self._pass
        if is_new:
            self._prepare(request)
            self._waiting.look_up(request)
        if is_new or found is None or found[0] != state:
            in_flight_s = max(self._free_s - now_s, 0.0) if self._in_flight else 0.0
            view = dataclasses.replace(self.view(now_s), in_flight_s=in_flight_s)
            extra = [*others, request] if is_new else []
            run = QueuePass(view, self._order, self._recent, extra)
            found = state, run
            self._pass = None if is_new else found
        forecast = self._forecaster.of(request, found[1])
        if request.forecast is None:
            request.forecast = forecast
        return forecast

    def _order(self, view: SchedulerView, steps: StepPrices, prompts: Facts) -> Turns:
        turns: Turns = self._ask(order_of(self.policy), view, steps, prompts)
        if not any(one.priority for one in prompts.requests):
            return turns
        since_s = view.now_s - self._max_age_s
        if isinstance(turns, tuple):
            return in_tiers(turns[0], prompts, since_s), turns[1]
        return in_tiers(turns, prompts, since_s)

    @property
    def _max_age_s(self) -> float:
        return float(getattr(self.policy, "max_age_s", MAX_AGE_S))

    def _enqueue(self, request: Request) -> None:
        request.state = RequestState.WAITING
        self._waiting.add(request)

    def view(self, now_s: float) -> SchedulerView:
        """Returns the snapshot that the policy sees."""
        self._waiting.refresh()
        held = self._held
        if self.admission.has_tiers:
            waiting = [one for one in self._waiting.requests if one not in held]
            held = behind(waiting, now_s, self._max_age_s).union(held)
        return SchedulerView(
            now_s=now_s,
            in_flight_s=sum(plan.predicted_s for plan in self._in_flight),
            step_id=self._next_step_id,
            running=[one for one in self._holders.requests if one.wants_more],
            queue=self._waiting,
            held=held,
            num_free_slots=self._holders.num_free_slots,
            ledger=self.ledger,
            buckets=self.buckets,
            predictor=self.predictor,
            latencies=self._latencies,
            prefill_tokens_per_s=self._recent.prefill_tokens_per_s,
            tight_ttft_s=self._recent.tight_ttft_s,
            max_num_batched_tokens=self._max_num_batched_tokens,
            max_num_seqs=self.max_num_seqs,
        )

    def review(self, now_s: float) -> list[Output]:
        """Applies the classes' admission rules, before a plan; returns who ended."""
        if not (self.admission.is_needed and self._waiting):
            return []
        found = self.admission.review(self.view(now_s))
        self._held = found.held
        for request in found.degraded:
            request.degrade()
            self._waiting.reread(request)
        for request, _, work_s in found.ended:  # one pass over the queue for all
            back_s = self.forecast(request, now_s).attainable_in_s or 0.0
            request.retry_after_s = self.admission.returns.next_s(now_s, back_s, work_s)
        for request, reason, _ in found.ended:
            self._waiting.remove(request)
            self._finish(request, reason)
        return [Output(request, None) for request, _, _ in found.ended]

    def plan(self, now_s: float) -> StepPlan | None:
        """Returns the next step; None if nothing can run now."""
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            return None
        plan = self._ask(self.policy.plan, self.view(now_s))
        if plan is None or isinstance(plan, StepPlan):
            return plan
        name = type(self.policy).__name__
        raise PolicyError(f"policy {name} planned {plan!r}, not a StepPlan")

    def _ask(self, what: Callable[..., Any], *args: object) -> Any:
        try:
            return what(*args)
        except Exception as error:
            name = type(self.policy).__name__
            raise PolicyError(f"policy {name} raised {error!r}") from error

    def dispatch(self, plan: StepPlan, now_s: float) -> None:
        """Commits to a plan: preempts, admits, reserves pages, advances counts."""
        assert plan.step_id == self._next_step_id, "plans are dispatched as made"
        assert len(self._in_flight) < MAX_IN_FLIGHT
        self._next_step_id += 1
        for victim in plan.preempted:
            self._preempt(victim)
        # All shared pages first: allocation may evict pages that no request holds.
        for row in plan.chunks:
            if row.request.state is RequestState.WAITING:
                self._admit(row, now_s)
        for row in (*plan.decodes, *plan.chunks):
            request = row.request
            self._holders.reserve(request, row.stop)
            request.num_dispatched_tokens = row.stop
            request.num_pending_tokens += row.draws_token
            request.num_plans_in_flight += 1
        start_s = max(self._free_s, now_s) if self._in_flight else now_s
        self._free_s = start_s + plan.predicted_s
        self._in_flight.append(plan)

    def _admit(self, row: Row, now_s: float) -> None:
        request = row.request
        self._holders.admit(request, row.start)
        request.state = RequestState.RUNNING
        request.is_committed = True
        if request.first_scheduled_s is None:
            request.first_scheduled_s = now_s
            self.admission.returns.begin(now_s)
            request.num_cached_tokens = min(row.start, request.num_prompt_tokens)
            self.counters.prompt_tokens += request.num_prompt_tokens
            self.counters.prefix_hit_tokens += request.num_cached_tokens
        self._waiting.remove(request)

    def _preempt(self, victim: Request) -> None:
        assert victim.num_plans_in_flight == 0 and victim.num_pending_tokens == 0
        self._holders.release(victim)
        victim.num_dispatched_tokens = 0
        victim.num_preemptions += 1
        self.counters.num_preemptions += 1
        self._enqueue(victim)

    def apply(self, result: StepResult) -> list[Output]:
        """Commits the oldest plan in flight.

        The new tokens of requests that have not ended are returned, in plan order.
        """
        plan = self._in_flight.popleft()
        self.predictor.update(StepSample(plan.features, result.duration_s))
        self._recent.add_step(plan, result.duration_s)
        outputs = []
        tokens = iter(result.tokens)
        for row in (*plan.decodes, *plan.chunks):
            request = row.request
            request.num_plans_in_flight -= 1
            if row.draws_token:
                token = next(tokens)
                request.num_pending_tokens -= 1
                if request.state is not RequestState.FINISHED:
                    self._take_token(request, token)
                    outputs.append(Output(request, token))
            if request.state is not RequestState.FINISHED:
                self._holders.publish(request, row.stop)
            elif request.num_plans_in_flight == 0 and request.slot is not None:
                self._holders.release(request)
        self._forecaster.learn(outputs, result.end_s)
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
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._lengths.settle(request)
        else:
            self._forecaster.forget(request)

    def cancel(self, request_id: str) -> Output | None:
        """Ends a request early, so that it yields no further token; None if not live.

        Its pages come back once no plan in flight names it.
        """
        request = self._requests.get(request_id)
        if request is None:
            return None
        if request.state is RequestState.WAITING:
            self._waiting.remove(request)
        self._finish(request, FinishReason.CANCELLED)
        if request.slot is not None and request.num_plans_in_flight == 0:
            self._holders.release(request)
        return Output(request, None)
