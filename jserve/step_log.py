"""The step log: bounded, private (shapes and times, no text), read while serving."""

import collections
import itertools
import threading

from jserve.events import StepRecord

_MAX_RECORDS = 65536


class StepLog:
    """The last steps, by consecutive id; written by one thread, read by any."""

    def __init__(self, max_records: int = _MAX_RECORDS):
        self._records: collections.deque[StepRecord] = collections.deque(
            maxlen=max_records
        )
        self._lock = threading.Lock()

    def append(self, record: StepRecord) -> None:
        """Adds the next step, and forgets the oldest beyond the bound."""
        with self._lock:
            self._records.append(record)

    def since(self, step_id: int) -> list[StepRecord]:
        """Returns the steps from `step_id` on that are still remembered."""
        with self._lock:
            if not self._records:
                return []
            skip = max(step_id - self._records[0].step_id, 0)
            return list(itertools.islice(self._records, skip, None))
