"""Records of the steps: made, remembered, and written to the step log.

The step-time table prices the padding of a step whatever predictor planned it, so
padding is comparable between predictors.
"""

import collections
import itertools
import threading
import time

import numpy as np

from jserve.engine.engine import PendingStep
from jserve.records.step_log import StepRecorder
from jserve_sched.steps import features
from jserve_sched.steps.record import StepRecord, recorded_sizes
from jserve_sched.timing.predictor import Predictor

_MAX_RECORDS = 65536


class RecentSteps:
    """Takes each step in the engine's thread; any thread may read.

    Attributes:
      num_steps: Steps taken so far.
    """

    def __init__(self, prices: Predictor, recorder: StepRecorder | None = None):
        """Remembers nothing yet.

        Args:
          prices: The step-time table.
          recorder: Takes every record; closed by `close`.
        """
        self.num_steps = 0
        self._prices = prices
        self._recorder = recorder
        self._records = collections.deque[StepRecord](maxlen=_MAX_RECORDS)
        self._lock = threading.Lock()

    def since(self, step_id: int) -> list[StepRecord]:
        """Returns the records of steps `step_id` and later that are remembered."""
        with self._lock:
            if not self._records:
                return []
            skip = max(step_id - self._records[0].step_id, 0)
            return list(itertools.islice(self._records, skip, None))

    def add(
        self,
        pending: PendingStep,
        *,
        plan_s: float,
        num_waiting: int,
        end_s: float,
        duration_s: float,
        wait_s: float,
        apply_s: float,
    ) -> None:
        """Takes a step that has been applied; see `StepRecord` for the arguments."""
        start_s = time.perf_counter()
        plan = pending.plan
        bare = features.without_padding(plan.features, plan.num_blocks)
        matrix = np.stack((plan.features, bare))
        bucket_s, used_s = self._prices.predict(matrix).tolist()
        host_s = plan_s + pending.transfer_s + pending.launch_s + apply_s
        record = StepRecord(
            step_id=plan.step_id,
            end_s=end_s,
            launched_s=pending.launched_s,
            used_blocks=plan.num_blocks,
            num_waiting=num_waiting,
            num_compiling=pending.num_compiling,
            ended_by=plan.ended_by.value,
            leaves_work=plan.leaves_work,
            predicted_s=plan.predicted_s,
            bucket_s=bucket_s,
            used_s=used_s,
            duration_s=duration_s,
            plan_s=plan_s,
            transfer_s=pending.transfer_s,
            launch_s=pending.launch_s,
            wait_s=wait_s,
            apply_s=apply_s,
            host_s=host_s + time.perf_counter() - start_s,
            **recorded_sizes(plan.features),
        )
        with self._lock:
            self._records.append(record)
        if self._recorder is not None:
            self._recorder.append(record)
        self.num_steps += 1

    def begin_stretch(self) -> None:
        """Writes into the file what holds from the next step on."""
        if self._recorder is not None:
            self._recorder.begin_stretch()

    def close(self) -> None:
        """Ends the file; records are still remembered."""
        if self._recorder is not None:
            self._recorder.end()
