"""The tuned settings of each row, found with a seed that no result uses.

They are in a committed file, so that they are published with the results. Options are
tuned one after the other. A setting is searched only if it passes at the next rate
above the best so far: a worse setting then costs one probe, which stops as soon as it
cannot pass, and a better one is searched from that rate on. Of equal settings the first
one wins.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from benchmarks.slidingserve.cells import FULL_STEP_TOKENS, Cell, paper_start_qps
from benchmarks.slidingserve.rows import (
    COARSE_LIMITS_TOKENS,
    LIMITS_TOKENS,
    Row,
    Value,
)
from jserve_sched.simulation.goodput import RateGrid
from jserve_tools.reporting.documents import write_whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Tuned settings of one row on one workload and shape.

    Attributes:
      shape: `continuous` or `buckets`.
      workload: Name of the workload.
      row: Name of the row.
      limit_tokens: Most token positions in a step.
      options: Values of the row's knobs.
      qps: Goodput of the tuning seed with these settings, requests per second.
      num_tried: Number of settings tried.
      seed: Tuning seed.
      num_requests: Number of requests in each probe.
      commit: Commit of the code that tuned.
    """

    shape: str
    workload: str
    row: str
    limit_tokens: int
    options: Mapping[str, Value]
    qps: float
    num_tried: int
    seed: int
    num_requests: int
    commit: str | None = None


class Settings:
    """Tuned settings, by shape, workload and row."""

    def __init__(self, choices: Iterable[Choice] = ()):
        self._choices = {(one.shape, one.workload, one.row): one for one in choices}

    @property
    def choices(self) -> tuple[Choice, ...]:
        """All choices, sorted by shape, workload and row."""
        return tuple(one for _, one in sorted(self._choices.items()))

    def start_qps(self, shape: str, workload: str, row: Row) -> float:
        """Returns the rate at which the search of a row's goodput starts."""
        chosen = self._choices.get((shape, workload, row.name))
        return (chosen.qps if chosen else 0.0) or paper_start_qps(workload)

    def server(self, shape: str, workload: str, row: Row) -> dict[str, Any]:
        """Returns the fields of a cell that say how a row's server is set up.

        Raises:
          ValueError: If the row must be tuned and was not.
        """
        limit_tokens, options = FULL_STEP_TOKENS, {}
        if row.is_tuned:
            chosen = self._choices.get((shape, workload, row.name))
            if chosen is None:
                raise ValueError(
                    f"no settings for {row.name!r} on {workload}, {shape}: "
                    "run --stages=tune first"
                )
            limit_tokens, options = chosen.limit_tokens, dict(chosen.options)
        return row.server(shape, limit_tokens, options)


def read_settings(path: pathlib.Path) -> Settings:
    """Reads settings; there are none if the file does not exist.

    Raises:
      ValueError: If it is not a file of settings.
    """
    if not path.exists():
        return Settings()
    try:
        return Settings(
            Choice(**one) for one in json.loads(path.read_text())["choices"]
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a settings file: {error!r}") from None


def write_settings(path: pathlib.Path, settings: Settings) -> None:
    """Writes settings, one choice per line."""
    lines = ",\n".join(
        f"  {json.dumps(dataclasses.asdict(one))}" for one in settings.choices
    )
    write_whole(path, f'{{"choices": [\n{lines}\n]}}\n'.encode())


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneTask:
    """Task that tunes one row on one workload and shape.

    Attributes:
      workload: Name of the workload.
      shape: `continuous` or `buckets`.
      seed: Seed of the requests, which no result uses.
      num_requests: Number of requests in each probe.
      resolution: Relative distance of the rates tried.
    """

    row: Row
    workload: str
    shape: str
    seed: int
    num_requests: int
    resolution: float

    def run(
        self, run_cell: Callable[[Cell], dict[str, Any]] = Cell.run
    ) -> dict[str, Any]:
        """Returns the fields of the best `Choice`."""
        search = _Search(self, run_cell)
        for limit_tokens in COARSE_LIMITS_TOKENS:
            search.offer(limit_tokens, search.options)
        for limit_tokens in search.neighbours():
            search.offer(limit_tokens, search.options)
        before = search.options
        for option, values in self.row.knobs:
            for value in values:
                options = search.options | {option: value}
                search.offer(search.limit_tokens, options)
        if search.options != before:
            for limit_tokens in search.neighbours():
                search.offer(limit_tokens, search.options)
        choice = Choice(
            shape=self.shape,
            workload=self.workload,
            row=self.row.name,
            limit_tokens=search.limit_tokens,
            options=search.options,
            qps=search.qps,
            num_tried=len(search.tried),
            seed=self.seed,
            num_requests=self.num_requests,
        )
        return dataclasses.asdict(choice)


class _Search:
    """A search, with the best of the settings tried so far."""

    def __init__(self, task: TuneTask, run_cell: Callable[[Cell], dict[str, Any]]):
        self._task = task
        self._run_cell = run_cell
        self._grid = RateGrid(resolution=task.resolution)
        self.tried: set[tuple[int, tuple[tuple[str, Value], ...]]] = set()
        self.limit_tokens = COARSE_LIMITS_TOKENS[-1]
        self.options = {option: values[0] for option, values in task.row.knobs}
        self.qps = 0.0

    def offer(self, limit_tokens: int, options: dict[str, Value]) -> None:
        """Tries a setting, and keeps it if it is better than the best so far."""
        key = (limit_tokens, tuple(sorted(options.items())))
        if key in self.tried:
            return
        self.tried.add(key)
        task = self._task
        probe = Cell(
            kind="pass",
            workload=task.workload,
            **task.row.server(task.shape, limit_tokens, options),
            seed=task.seed,
            num_requests=task.num_requests,
            qps=paper_start_qps(task.workload),
            resolution=task.resolution,
        )
        if self.qps:
            next_qps = self._grid.qps(self._grid.nearest(self.qps) + 1)
            probe = dataclasses.replace(probe, qps=next_qps)
            if not self._run_cell(probe)["passes"]:
                return
        found = self._run_cell(dataclasses.replace(probe, kind="goodput"))
        if found["qps"] > self.qps:
            self.qps = found["qps"]
            self.limit_tokens, self.options = limit_tokens, options

    def neighbours(self) -> Iterator[int]:
        """Yields the limits next to the best, as long as they improve it."""
        for step in (-1, 1):
            before = None
            while before != self.limit_tokens:
                before = self.limit_tokens
                index = LIMITS_TOKENS.index(before) + step
                if 0 <= index < len(LIMITS_TOKENS):
                    yield LIMITS_TOKENS[index]
