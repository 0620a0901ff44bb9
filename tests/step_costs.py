"""Made-up step costs, and snapshots to plan with them by hand."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from jserve_sched import features
from jserve_sched.buckets import BucketTable
from jserve_sched.cost_model import ClosedForm, Formula
from jserve_sched.ledger import KvLedger
from jserve_sched.predictor import StepSample
from jserve_sched.request import Request
from jserve_sched.request_latency import LatencySource
from jserve_sched.view import SchedulerView
from jserve_sched.waiting import WaitingQueue

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


@dataclasses.dataclass(frozen=True)
class Curve:
    """A predictor: any function of the prefill tokens of a step, in seconds."""

    seconds: Callable[[np.ndarray], np.ndarray]

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        return np.asarray(self.seconds(matrix[:, features.PREFILL_TOKENS]), np.float64)

    predict_upper = predict

    def update(self, sample: StepSample) -> None:
        del sample


@dataclasses.dataclass(frozen=True)
class Staircase:
    """A predictor: any function of the compiled blocks of a step, in seconds."""

    seconds: Callable[[np.ndarray], np.ndarray]

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        return np.asarray(self.seconds(matrix[:, features.NUM_BLOCKS]), np.float64)

    predict_upper = predict

    def update(self, sample: StepSample) -> None:
        del sample


def make_view(
    table: BucketTable,
    predictor: Curve | Staircase,
    *,
    running: Sequence[Request] = (),
    waiting: Sequence[Request] = (),
    now_s: float = 0.0,
    max_tokens: int | None = None,
    prefill_tokens_per_s: float | None = None,
    tight_ttft_s: float = math.inf,
) -> SchedulerView:
    return SchedulerView(
        now_s=now_s,
        in_flight_s=0.0,
        step_id=0,
        running=running,
        queue=WaitingQueue(waiting),
        num_free_slots=table.max_rows - len(running),
        ledger=KvLedger(num_pages=4096, page_size=8),
        buckets=table,
        predictor=predictor,
        prefill_tokens_per_s=prefill_tokens_per_s,
        tight_ttft_s=tight_ttft_s,
        max_num_batched_tokens=max_tokens
        or table.max_rows + table.max_blocks * table.block_tokens,
        max_num_seqs=table.max_rows,
        epoch=0,
        outlook=None,
        latency_source=LatencySource(),
    )
