"""Fakes and builders, with defaults for all that a test does not care about."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jserve_sched.buckets.table import BucketTable
from jserve_sched.memory.ledger import KvLedger
from jserve_sched.outcomes import Outcome
from jserve_sched.policies.registry import make_policy
from jserve_sched.requests.output_lengths import LengthEstimator
from jserve_sched.requests.request import Request, RequestState
from jserve_sched.requests.slo import Slo
from jserve_sched.scheduler import Scheduler
from jserve_sched.steps import features
from jserve_sched.steps.plan import StepPlan, StepResult
from jserve_sched.steps.record import StepRecord
from jserve_sched.timing.table import TablePredictor

VOCAB = 97
STEP_S = 0.01
_ids = itertools.count()


@dataclasses.dataclass
class ManualClock:
    """A clock that moves only by `advance`."""

    time_s: float = 0.0

    def now_s(self) -> float:
        return self.time_s

    def advance(self, duration_s: float) -> None:
        assert duration_s >= 0
        self.time_s += duration_s


def fake_next_token(context: Sequence[int]) -> int:
    """The token after `context`, which depends on every token and its position."""
    weighted = sum((index + 1) * int(token) for index, token in enumerate(context))
    return (weighted + 7 * len(context)) % VOCAB


def expected_output(request: Request) -> list[int]:
    """The output that a request must have, whatever runs beside it."""
    context = [int(token) for token in request.prompt_tokens]
    output: list[int] = []
    while len(output) < request.max_tokens:
        token = fake_next_token(context)
        output.append(token)
        context.append(token)
        if token in request.stop_token_ids and len(output) > request.min_tokens:
            break
    return output


def make_step(num_rows: int = 8, num_blocks: int = 0, **fields: Any) -> StepRecord:
    """A recorded step of 10 ms that fills its bucket."""
    sizes = {"num_rows": num_rows, "num_blocks": num_blocks, "used_rows": num_rows}
    sizes |= {"used_blocks": num_blocks, "decode_pages": 1, "block_pages": 1}
    others = {"leaves_work": False, "end_s": 1.0, "duration_s": 0.01}
    return StepRecord(**(sizes | others | fields))


def make_features(num_steps: int = 1, /, **columns: Any) -> np.ndarray:
    """Features `[N, F]` of steps, 0 but for columns by name."""
    matrix = np.zeros((num_steps, features.NUM_FEATURES))
    for name, values in columns.items():
        matrix[:, getattr(features, name)] = values
    return matrix


def make_outcome(*token_times_s: float, **fields: Any) -> Outcome:
    """What a request experienced that came at 10 s, with SLOs of 1 and 0.5 s."""
    known: dict[str, Any] = {
        "service_class": "tight",
        "slo": Slo(ttft_s=1.0, tbt_s=0.5),
        "arrival_s": 10.0,
        "num_prompt_tokens": 8,
        "max_tokens": max(1, len(token_times_s)),
    }
    return Outcome(token_times_s=token_times_s, **known | fields)


def make_request(
    num_prompt_tokens: int = 8,
    max_tokens: int = 4,
    *,
    request_id: str | None = None,
    arrival_s: float = 0.0,
    prompt: Sequence[int] | np.ndarray | None = None,
    slo: Slo | None = None,
    **fields: Any,
) -> Request:
    name = request_id if request_id is not None else f"r{next(_ids)}"
    if prompt is None:
        seed = sum(name.encode())
        prompt = np.random.default_rng(seed).integers(0, VOCAB, num_prompt_tokens)
    return Request(
        request_id=name,
        arrival_s=arrival_s,
        prompt_tokens=np.asarray(prompt, np.int32),
        max_tokens=max_tokens,
        slo=slo or Slo(),
        **fields,
    )


def begin(request: Request, num_dispatched_tokens: int | None = None) -> Request:
    """Lets a request run, with pages of 8 tokens; by default it decodes."""
    tokens = request.num_prompt_tokens
    if num_dispatched_tokens is None:
        request.output_tokens.append(1)
        num_dispatched_tokens = tokens
    request.num_dispatched_tokens = num_dispatched_tokens
    request.slot, request.pages = 0, list(range(-(-tokens // 8)))
    request.state = RequestState.RUNNING
    return request


def check_integrity(scheduler: Scheduler) -> None:
    """Asserts that no page or slot is lost, released too early or held wrongly."""
    ledger, holders = scheduler.ledger, scheduler._holders
    held = collections.Counter(page for one in holders.requests for page in one.pages)
    idle = [*ledger._free, *ledger._evictable]
    assert sorted([*held, *idle]) == list(range(ledger.num_pages))
    assert all(ledger._num_holders[page] == held[page] for page in [*held, *idle])
    known = {page: name for name, page in ledger._page_of.items()}
    assert known == {page: name for page, name in enumerate(ledger._hash_of) if name}
    assert not known.keys() & ledger._free and not ledger._evictable.keys() - known
    slots: list[Any] = [one.slot for one in holders.requests]
    slots += holders._free_slots
    assert sorted(slots) == list(range(scheduler.max_num_seqs))
    rows = [row for plan in scheduler._in_flight for row in plan.decodes + plan.chunks]
    named = collections.Counter(id(row.request) for row in rows)
    waiting = scheduler.view(0.0).queue.requests
    assert not any(one.pages or one.slot is not None for one in waiting)
    live = [*waiting]
    for one in holders.requests:
        assert one.num_dispatched_tokens <= len(one.pages) * ledger.page_size
        assert one.num_plans_in_flight == named[id(one)]
        if one.finish_reason is None:
            live.append(one)
        else:
            assert one.num_plans_in_flight, f"{one.request_id} keeps its pages"
    assert sorted(scheduler._requests) == sorted(one.request_id for one in live)


SMALL_TABLE = BucketTable((2, 4, 8), (0, 1, 2, 4), block_tokens=4)


def make_scheduler(
    *,
    policy: str = "fcfs",
    table: BucketTable = SMALL_TABLE,
    num_pages: int = 64,
    page_size: int = 8,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    max_model_len: int = 256,
    enable_prefix_caching: bool = True,
    lengths: LengthEstimator | None = None,
) -> Scheduler:
    return Scheduler(
        policy=make_policy(policy),
        buckets=table,
        ledger=KvLedger(
            num_pages=num_pages,
            page_size=page_size,
            enable_prefix_caching=enable_prefix_caching,
        ),
        predictor=TablePredictor(table),
        max_num_seqs=max_num_seqs or table.max_rows,
        max_num_batched_tokens=max_num_batched_tokens
        or table.max_rows + table.max_blocks * table.block_tokens,
        max_model_len=max_model_len,
        lengths=lengths,
    )


@dataclasses.dataclass
class PagedRunner:
    """An engine with paged memory, which reads every context through its pages.

    A page that is lost, shared wrongly or handed out too early holds another request's
    tokens, so the next token is wrong.
    """

    num_pages: int
    page_size: int
    num_slots: int

    def __post_init__(self) -> None:
        self._memory = np.full((self.num_pages, self.page_size), -1, np.int64)
        self._slot_tokens = np.full(self.num_slots, -1, np.int64)

    def run(self, plan: StepPlan) -> StepResult:
        rows = (*plan.decodes, *plan.chunks)
        assert len(plan.decodes) <= plan.bucket.num_rows
        assert plan.num_blocks <= plan.bucket.num_blocks
        for row in rows:
            request = row.request
            for position in range(row.start, row.stop):
                if position < request.num_known_tokens:
                    token = int(request.known_tokens(position, position + 1)[0])
                else:
                    token = int(self._slot_tokens[request.slot])
                page = request.pages[position // self.page_size]
                self._memory[page, position % self.page_size] = token
        tokens = []
        for row in rows:
            request = row.request
            context = self._memory[request.pages].reshape(-1)[: row.stop]
            if row.draws_token:
                token = fake_next_token(context.tolist())
                self._slot_tokens[request.slot] = token
                tokens.append(token)
        return StepResult(tokens=tuple(tokens), duration_s=STEP_S)


@dataclasses.dataclass
class Driver:
    """Drives a scheduler and a runner in virtual time, `lag` plans behind.

    `lag` 0 applies each step before the next is planned; 1 plans one step ahead.
    """

    scheduler: Scheduler
    lag: int = 1
    on_plan: Callable[[StepPlan], None] = lambda plan: None

    def __post_init__(self) -> None:
        ledger = self.scheduler.ledger
        self.runner = PagedRunner(
            ledger.num_pages, ledger.page_size, self.scheduler.max_num_seqs
        )
        self.clock = ManualClock()
        self.finished: list[Request] = []
        self._results: collections.deque[StepResult] = collections.deque()

    @property
    def now_s(self) -> float:
        return self.clock.now_s()

    def step(self) -> bool:
        """Plans one step and applies the result that is due; False without either."""
        scheduler = self.scheduler
        plan = scheduler.plan(self.now_s)
        if plan is not None:
            self.on_plan(plan)
            scheduler.dispatch(plan, self.now_s)
            result = self.runner.run(plan)
            self._results.append(result)
            self.clock.advance(STEP_S)
        is_due = len(self._results) > (self.lag if plan is not None else 0)
        if is_due:
            for output in scheduler.apply(self._results.popleft()):
                if output.request.finish_reason is not None:
                    self.finished.append(output.request)
        check_integrity(scheduler)
        return plan is not None or is_due

    def run(self, max_steps: int = 10_000) -> None:
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                return
            assert self.step(), "work is left, but nothing can run"
        raise AssertionError(f"not done after {max_steps} steps")
