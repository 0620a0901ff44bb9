"""Runs requests through a real engine, step by step, and keeps its results."""

import collections
import dataclasses
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pytest

from jserve.build import build_loop
from jserve.config import EngineConfig
from jserve.engine.compile_cache import machine_name
from jserve.engine.engine import Engine, PendingStep
from jserve.engine.loop import EngineLoop
from jserve.engine.program_kinds import Head
from jserve.engine.program_store import ProgramStore
from jserve.engine.programs import Programs
from jserve.records.events import Health, TokenEvent
from jserve.timing.checkpoint import PredictorFacts
from jserve_models.registry import LoadedModel, load_model
from jserve_models.steps import KvCache
from jserve_models.toy import toy_next_token
from jserve_sched.buckets.table import Bucket, BucketTable
from jserve_sched.requests.request import Request
from jserve_sched.scheduler import Scheduler
from jserve_sched.steps.plan import StepPlan, StepResult
from tests import TESTS
from tests.fakes import check_integrity, make_scheduler

TEST_TABLE = BucketTable((8, 16), (0, 4))
MAX_MODEL_LEN = 2048
TOY_KV_BYTES = 160 * 4096  # the pages of `make_engine`
FACTS = PredictorFacts(
    platform="cpu",
    device_kind="cpu",
    model="0123",
    dtype="float32",
    page_size=128,
    block_tokens=32,
)


def make_engine(
    model: str | LoadedModel = "toy",
    *,
    table: BucketTable = TEST_TABLE,
    num_pages: int = 160,
    page_size: int = 128,
    max_model_len: int = MAX_MODEL_LEN,
    captures_logits: bool = False,
    programs: pathlib.Path | None = None,
) -> Engine:
    """A warm engine; loads its programs from a folder, and stores new ones there."""
    loaded = model
    if isinstance(loaded, str):
        loaded = load_model(loaded, seed=0, dtype=np.float32)
    engine = Engine(
        model=loaded,
        dtype=np.dtype(np.float32),
        num_slots=table.max_rows,
        num_pages=num_pages,
        page_size=page_size,
        block_tokens=table.block_tokens,
        max_model_len=min(max_model_len, loaded.config.max_model_len),
        captures_logits=captures_logits,
        store=None if programs is None else ProgramStore(programs, is_writable=True),
    )
    engine.warm_up(table.buckets)
    return engine


def make_engine_scheduler(engine: Engine, **settings: Any) -> Scheduler:
    """A scheduler of an engine of `TEST_TABLE`; without a prefix cache by default."""
    fields: dict[str, Any] = {
        **{"table": TEST_TABLE, "max_model_len": MAX_MODEL_LEN},
        **{"num_pages": engine.num_pages, "page_size": engine.page_size},
        "enable_prefix_caching": False,
    }
    return make_scheduler(**fields | settings)


def toy_output(request: Request) -> list[int]:
    """The tokens that the toy answers to a request, by its arithmetic."""
    context = request.prompt_tokens.tolist()
    for _ in range(request.max_tokens):
        context.append(toy_next_token(context))
    return context[request.num_prompt_tokens :]


Place = tuple[str, int, int]  # bucket, first row, tokens


@dataclasses.dataclass
class Trace:
    """Logits, scores and the places of all earlier rows at each token of a request."""

    logits: list[np.ndarray] = dataclasses.field(default_factory=list)
    scores: list[np.ndarray] = dataclasses.field(default_factory=list)
    pasts: list[tuple[Place, ...]] = dataclasses.field(default_factory=list)


def places(plan: StepPlan) -> dict[str, Place]:
    """The place where each request of a plan is computed."""
    bucket = plan.bucket
    found = {
        row.request.request_id: (str(bucket), index, 1)
        for index, row in enumerate(plan.decodes)
    }
    first = bucket.num_rows
    for row in plan.chunks:
        found[row.request.request_id] = (str(bucket), first, row.num_tokens)
        first += -(-row.num_tokens // bucket.block_tokens)
    return found


@dataclasses.dataclass
class EngineDriver:
    """Drives engine and scheduler, one plan ahead when `lag` is 1."""

    engine: Engine
    scheduler: Scheduler
    lag: int = 1
    captures: bool = False

    def __post_init__(self) -> None:
        self.traces: dict[str, Trace] = collections.defaultdict(Trace)
        self._pasts: dict[str, tuple[Place, ...]] = collections.defaultdict(tuple)
        self._pending: collections.deque[PendingStep] = collections.deque()

    def step(self) -> None:
        plan = self.scheduler.plan(0.0)
        if plan is not None:
            self.scheduler.dispatch(plan, 0.0)
            self._pending.append(self.engine.launch(plan))
        if len(self._pending) > (self.lag if plan is not None else 0):
            pending = self._pending.popleft()
            tokens = pending.wait()
            if self.captures:
                self._capture(pending)
            self.scheduler.apply(StepResult(tokens=tokens, duration_s=0.01))
        check_integrity(self.scheduler)

    def _capture(self, pending: PendingStep) -> None:
        for request_id, place in places(pending.plan).items():
            self._pasts[request_id] += (place,)
        logits, scores = pending.captured()
        plan = pending.plan
        rows = [*plan.decodes, *(row for row in plan.chunks if row.draws_token)]
        programs = self.engine.programs._compiled
        heads = {one.num_rows for one in programs if isinstance(one, Head)}
        head = min((one for one in heads if one >= len(rows)), default=0)
        for index, row in enumerate(rows):
            if row.request.finish_reason is None:
                trace = self.traces[row.request.request_id]
                trace.logits.append(logits[index])
                trace.scores.append(scores[index])
                past = self._pasts[row.request.request_id]
                trace.pasts.append((*past, (f"head{head}", index, 1)))

    def run(self, *requests: Request, until: Request | None = None) -> None:
        """Runs until all requests, or one of them, have ended; then drops the rest."""
        for request in requests:
            self.scheduler.submit(request)
        for _ in range(20_000):
            if not self.scheduler.has_work:
                return
            if until is not None and until.finish_reason is not None:
                view = self.scheduler.view(0.0)
                for request in [*view.running, *view.waiting]:
                    self.scheduler.cancel(request.request_id)
            self.step()
        raise AssertionError("the requests never finished")


def small_config(**fields: object) -> EngineConfig:
    """The configuration of a small real server: four programs."""
    defaults: dict[str, object] = {
        "model": "tiny",
        "policy": "fcfs",
        "buckets": TESTS / "four_programs.json",
        "max_num_seqs": 16,
        "max_num_batched_tokens": 16 + 4 * 32,
        "max_model_len": MAX_MODEL_LEN,
        "kv_cache_bytes": 64 * 2**20,
        "compile_cache_dir": "",
        "enable_overlap": True,  # the harder case
    }
    return EngineConfig(**{**defaults, **fields})  # type: ignore[arg-type]


def build_toy_loop(programs: pathlib.Path, **fields: object) -> EngineLoop:
    """A loop with the programs of `make_engine("toy")`, loaded from a folder if there.

    Unlike `compile_cache_dir`, this leaves JAX's cache, which is global, switched off,
    and step times unknown.
    """

    def make_stored_engine(**parts: Any) -> Engine:
        store = ProgramStore(programs, is_writable=True)
        return Engine(**{**parts, "store": store})

    toy: dict[str, object] = {"model": "toy", "kv_cache_bytes": TOY_KV_BYTES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jserve.build.Engine", make_stored_engine)
        return build_loop(small_config(**{**toy, **fields}))


def share_programs(cache: pathlib.Path, programs: pathlib.Path) -> None:
    """Makes a folder for `compile_cache_dir` with the programs of another folder."""
    folder = cache / machine_name()
    folder.mkdir(mode=0o700, parents=True)
    (folder / "programs").symlink_to(programs)


def step_of_little(
    programs: Programs, bucket: Bucket
) -> Callable[..., tuple[Any, ...]]:
    """A step that compiles at once; each bucket is a separate program."""

    def step(
        leaves: list[jax.Array],
        kv: KvCache,
        tables: jax.Array,
        slot_tokens: jax.Array,
        packed: jax.Array,
    ) -> tuple[Any, ...]:
        return kv, tables, slot_tokens + packed[0]

    return step


class Inbox:
    """A loop's listener, which collects events; `batches` has them step by step."""

    def __init__(self) -> None:
        self.events: dict[str, list[TokenEvent]] = collections.defaultdict(list)
        self.batches: list[list[TokenEvent]] = []
        self._changed = threading.Condition()

    def __call__(self, events: Sequence[TokenEvent]) -> None:
        with self._changed:
            self.batches.append(list(events))
            for event in events:
                self.events[event.request_id].append(event)
            self._changed.notify_all()

    def wait_for(self, *requests: Request, timeout_s: float = 60.0) -> None:
        def is_done() -> bool:
            return all(
                self.events[one.request_id]
                and self.events[one.request_id][-1].finish_reason is not None
                for one in requests
            )

        with self._changed:
            assert self._changed.wait_for(is_done, timeout_s), "a request never ended"

    def wait_for_token(self, request: Request, timeout_s: float = 60.0) -> None:
        with self._changed:
            assert self._changed.wait_for(
                lambda: self.events[request.request_id], timeout_s
            )

    def tokens(self, request: Request) -> list[int | None]:
        return [event.token for event in self.events[request.request_id]]


def start(loop: EngineLoop, health: Health) -> Inbox:
    """Starts a loop, waits until it has a health, and returns its listener."""
    inbox = Inbox()
    loop.set_listener(inbox)
    loop.start()
    assert loop.wait_until(health, 200.0)
    return inbox
