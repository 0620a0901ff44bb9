"""Synthetic step costs, and scheduler views with them."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from jserve_sched.buckets.table import BucketTable
from jserve_sched.memory.ledger import KvLedger
from jserve_sched.memory.waiting import WaitingQueue
from jserve_sched.planning.view import LatencySource, SchedulerView
from jserve_sched.policies.registry import make_policy
from jserve_sched.requests.request import Request
from jserve_sched.scheduler import Scheduler
from jserve_sched.simulation.cost_model import (
    ClosedForm,
    CostModel,
    Formula,
    OraclePredictor,
)
from jserve_sched.simulation.simulator import make_scheduler
from jserve_sched.simulation.workload import Arrival
from jserve_sched.steps import features
from jserve_sched.timing.predictor import StepSample
from jserve_sched.timing.request_latency import RequestLatency

_ONE_SECOND = Formula(base_ms=1000.0)
# A machine that takes a second for any step.
METRONOME = ClosedForm(
    name="metronome",
    decode=_ONE_SECOND,
    prefill=_ONE_SECOND,
    mixed=_ONE_SECOND,
    num_kv_tokens=640,
    page_size=8,
    max_num_seqs=4,
    max_num_batched_tokens=20,
)

METRONOME_TABLE = BucketTable((2, 4), (0, 1, 2, 4), block_tokens=4)


def arrival(
    name: str, arrival_s: float, prompt: int = 8, output: int = 3, **others: Any
) -> Arrival:
    return Arrival(
        request_id=name,
        arrival_s=arrival_s,
        num_prompt_tokens=prompt,
        max_tokens=output,
        **others,
    )


def scheduler_of(
    policy: str = "fcfs",
    cost_model: CostModel = METRONOME,
    table: BucketTable = METRONOME_TABLE,
    **others: Any,
) -> Scheduler:
    settings: dict[str, Any] = {
        "predictor": OraclePredictor(cost_model, table.block_tokens),
        "max_model_len": 16384,
    }
    return make_scheduler(
        policy=make_policy(policy),
        cost_model=cost_model,
        buckets=table,
        **settings | others,
    )


@dataclasses.dataclass(frozen=True)
class Curve:
    """A predictor of seconds from the prefill tokens of a step, by any function.

    `asked` has the features of all steps that it was asked about, call by call.
    """

    seconds: Callable[[np.ndarray], np.ndarray]
    asked: list[np.ndarray] = dataclasses.field(default_factory=list, compare=False)
    column: ClassVar[int] = features.PREFILL_TOKENS

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        self.asked.append(matrix)
        return np.asarray(self.seconds(matrix[:, self.column]), np.float64)

    predict_upper = predict

    def update(self, sample: StepSample) -> None:
        del sample


class Staircase(Curve):
    """A predictor of seconds from the compiled blocks of a step, by any function."""

    column = features.NUM_BLOCKS


class FixedLatency(LatencySource):
    """Times of whole requests by a given form, whatever the predictor says."""

    def __init__(self, latency: RequestLatency):
        self.latency = latency

    def at(self, view: SchedulerView) -> RequestLatency:
        del view
        return self.latency


def make_view(
    table: BucketTable,
    predictor: Curve,
    *,
    running: Sequence[Request] = (),
    waiting: Sequence[Request] = (),
    now_s: float = 0.0,
    max_tokens: int | None = None,
    prefill_tokens_per_s: float | None = None,
    tight_ttft_s: float = math.inf,
    latency: RequestLatency | None = None,
) -> SchedulerView:
    ledger = KvLedger(num_pages=4096, page_size=8)
    queue = WaitingQueue(ledger, waiting)
    queue.num_arrived += len(running)  # they waited once
    return SchedulerView(
        now_s=now_s,
        in_flight_s=0.0,
        step_id=0,
        running=running,
        queue=queue,
        num_free_slots=table.max_rows - len(running),
        ledger=ledger,
        buckets=table,
        predictor=predictor,
        latencies=FixedLatency(latency) if latency else LatencySource(),
        prefill_tokens_per_s=prefill_tokens_per_s,
        tight_ttft_s=tight_ttft_s,
        max_num_batched_tokens=max_tokens
        or table.max_rows + table.max_blocks * table.block_tokens,
        max_num_seqs=table.max_rows,
    )
