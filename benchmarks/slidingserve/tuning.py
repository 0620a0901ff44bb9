"""Finds a row's best settings: one knob after the other, on a seed of its own.

The one idea: a setting is looked into only if it passes at the next rate above the
best so far. So a worse one costs one probe, which stops as soon as it has failed, and
a better one is searched upwards from there. Of equal settings the first stays.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

from cell_store import CellStore
from cells import Cell, GoodputCell, PassCell, Setup, paper_start_qps
from rows import COARSE_LIMITS_TOKENS, LIMITS_TOKENS, Row, Value
from settings import Choice

from jserve_sched.goodput import RateGrid


class _Results(Protocol):
    def result(self, cell: Cell) -> dict[str, Any]: ...


class _Search:
    """The best of the settings tried so far."""

    def __init__(self, task: "TuneTask", results: _Results):
        self._task = task
        self._results = results
        self._grid = RateGrid(resolution=task.resolution)
        self._tried: set[tuple[int, tuple[tuple[str, Value], ...]]] = set()
        self.limit_tokens = COARSE_LIMITS_TOKENS[-1]
        self.options: dict[str, Value] = {
            knob.option: knob.values[0] for knob in task.row.knobs
        }
        self.qps = 0.0

    @property
    def num_tried(self) -> int:
        return len(self._tried)

    def offer(self, limit_tokens: int, options: dict[str, Value]) -> None:
        """Takes a setting if it is better than the best so far."""
        key = (limit_tokens, tuple(sorted(options.items())))
        if key in self._tried:
            return
        self._tried.add(key)
        task = self._task
        common: dict[str, Any] = {
            "workload": task.workload,
            "setup": Setup(
                shape=task.shape,
                policy=task.row.spec(options),
                limit_tokens=limit_tokens,
                predictor=task.row.predictor,
            ),
            "seed": task.seed,
            "num_requests": task.num_requests,
        }
        start_qps = paper_start_qps(task.workload)
        if self.qps:
            start_qps = self._grid.qps(self._grid.nearest(self.qps) + 1)
            if not self._results.result(PassCell(**common, qps=start_qps))["passes"]:
                return
        found = self._results.result(
            GoodputCell(**common, start_qps=start_qps, resolution=task.resolution)
        )
        if found["qps"] > self.qps:
            self.qps = found["qps"]
            self.limit_tokens, self.options = limit_tokens, options

    def neighbours(self) -> Iterator[int]:
        """Yields the limits beside the best, as long as they make it better."""
        for step in (-1, 1):
            before = None
            while before != self.limit_tokens:
                before = self.limit_tokens
                index = LIMITS_TOKENS.index(before) + step
                if 0 <= index < len(LIMITS_TOKENS):
                    yield LIMITS_TOKENS[index]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneTask:
    """Tunes one row on one workload and shape.

    Attributes:
      row: who.
      workload: its name.
      shape: continuous or buckets.
      seed: draws the requests; no judging seed.
      num_requests: in each probe.
      resolution: relative distance of the rates tried.
    """

    row: Row
    workload: str
    shape: str
    seed: int
    num_requests: int
    resolution: float

    def work(self, store: CellStore) -> Choice:
        """Returns the settings found."""
        return self.choose(store, store.commit)

    def choose(self, results: _Results, commit: str | None) -> Choice:
        """Returns the best settings by these results."""
        search = _Search(self, results)
        for limit_tokens in COARSE_LIMITS_TOKENS:
            search.offer(limit_tokens, search.options)
        for limit_tokens in search.neighbours():
            search.offer(limit_tokens, search.options)
        before = search.options
        for knob in self.row.knobs:
            for value in knob.values:
                options = search.options | {knob.option: value}
                search.offer(search.limit_tokens, options)
        if search.options != before:
            for limit_tokens in search.neighbours():
                search.offer(limit_tokens, search.options)
        return Choice(
            shape=self.shape,
            workload=self.workload,
            row=self.row.name,
            limit_tokens=search.limit_tokens,
            options=search.options,
            qps=search.qps,
            num_tried=search.num_tried,
            seed=self.seed,
            num_requests=self.num_requests,
            commit=commit,
        )
