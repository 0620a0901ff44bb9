"""Records of the steps: made, remembered, and written to the step log.

The step-time table prices the padding of a step whatever predictor planned it, so
padding is comparable between predictors. Steps are priced and recorded several at a
time, or when someone asks for them: that costs the engine as much as one alone.
"""

import bisect
import collections
import itertools
import logging
import threading
import time
from typing import Any

import numpy as np

from jserve.engine.engine import PendingStep
from jserve.records.step_log import StepRecorder
from jserve_sched.steps import features
from jserve_sched.steps.record import StepRecord, recorded_sizes
from jserve_sched.timing.predictor import StepModel

_LOG = logging.getLogger("jserve")
_MAX_RECORDS = 65536
_PRICED_TOGETHER = 32
_HOST_PARTS = ("plan_s", "transfer_s", "launch_s", "apply_s")


class RecentSteps:
    """Takes each step in the engine's thread; any thread may read.

    Attributes:
      num_steps: Steps taken so far.
      num_lost: Those of them that could not be recorded.
    """

    def __init__(self, prices: StepModel, recorder: StepRecorder | None = None):
        """Remembers nothing yet.

        Args:
          prices: The step-time table.
          recorder: Takes every record; closed by `close`.
        """
        self.num_steps = self.num_lost = 0
        self._prices = prices
        self._recorder = recorder
        self._records = collections.deque[StepRecord](maxlen=_MAX_RECORDS)
        # Steps without a record yet: the plan's features, and the fields beside them.
        self._new: list[tuple[np.ndarray, dict[str, Any]]] = []
        self._lock = threading.Lock()

    @property
    def is_recording(self) -> bool | None:
        """Whether steps go on to the file; None if there never was one."""
        return None if self._recorder is None else self._recorder.is_open

    def since(self, step_id: int) -> list[StepRecord]:
        """Returns the records of steps `step_id` and later that are remembered."""
        with self._lock:
            self._record_new()
            skip = bisect.bisect_left(
                self._records, step_id, key=lambda one: one.step_id
            )
            return list(itertools.islice(self._records, skip, None))

    def add(self, pending: PendingStep, **measured: float) -> None:
        """Takes a step that has been applied, and what the loop measured of it.

        That is `num_waiting` and the times of `StepRecord` that are not in `pending`.
        """
        plan = pending.plan
        fields = {
            "step_id": plan.step_id,
            "launched_s": pending.launched_s,
            "used_blocks": plan.num_blocks,
            "num_compiling": pending.num_compiling,
            "ended_by": plan.ended_by.value,
            "leaves_work": plan.leaves_work,
            "predicted_s": plan.predicted_s,
            "transfer_s": pending.transfer_s,
            "launch_s": pending.launch_s,
            **measured,
        }
        with self._lock:
            self._new.append((plan.features, fields))
            if len(self._new) >= _PRICED_TOGETHER:
                self._record_new()
        self.num_steps += 1

    def _record_new(self) -> None:
        """Records the new steps, if that is possible; the caller holds the lock."""
        try:
            if self._new:
                self._price_new()
        except Exception:  # no request depends on it
            if not self.num_lost:
                _LOG.exception("%d steps have no record", len(self._new))
            self.num_lost += len(self._new)
        self._new.clear()

    def _price_new(self) -> None:
        start_s = time.perf_counter()
        matrix = np.stack([row for row, _ in self._new])
        used_blocks = [fields["used_blocks"] for _, fields in self._new]
        bare = features.without_padding(matrix, used_blocks)
        prices_s = self._prices.predict(np.concatenate((matrix, bare)))
        sizes = recorded_sizes(matrix)
        each_s = (time.perf_counter() - start_s) / len(matrix)
        columns = {
            **sizes,
            "bucket_s": prices_s[: len(matrix)].tolist(),
            # Noise of the timed pass may price a page higher in a smaller bucket.
            "used_s": np.minimum(*np.split(prices_s, 2)).tolist(),
            "host_s": [
                sum(fields[part] for part in _HOST_PARTS) + each_s
                for _, fields in self._new
            ],
        }
        rows = zip(*columns.values(), strict=True)
        for (_, fields), row in zip(self._new, rows, strict=True):
            record = StepRecord(**fields, **dict(zip(columns, row, strict=True)))
            self._records.append(record)
            if self._recorder is not None:
                self._recorder.append(record)

    def begin_stretch(self) -> None:
        """Writes into the file what holds from the next step on."""
        with self._lock:
            self._record_new()
            if self._recorder is not None:
                self._recorder.begin_stretch()

    def close(self) -> None:
        """Ends the file; records are still remembered."""
        with self._lock:
            self._record_new()
            if self._recorder is not None:
                self._recorder.end()
