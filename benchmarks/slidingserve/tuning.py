"""The tuned settings of each row, found with a seed that no result uses.

They are in a committed file, so that they are published with the results. All of a
row's settings are tried. One is searched only if it passes at the next rate above the
best so far: a worse setting then costs one probe, which stops as soon as it cannot
pass, and a better one is searched from that rate on. Of equal settings the first one
wins.
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.slidingserve.cells import FULL_STEP_TOKENS, Cell, paper_start_qps
from benchmarks.slidingserve.rows import LIMITS_TOKENS, Row, Value
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
        rates = RateGrid(resolution=self.resolution)
        names = [option for option, _ in self.row.knobs]
        values = itertools.product(*(tried for _, tried in self.row.knobs))
        grid = [
            (limit_tokens, dict(zip(names, some, strict=True)))
            for some in values
            for limit_tokens in LIMITS_TOKENS
        ]
        qps, best = 0.0, grid[0]
        for limit_tokens, options in grid:
            probe = Cell(
                kind="pass",
                workload=self.workload,
                **self.row.server(self.shape, limit_tokens, options),
                seed=self.seed,
                num_requests=self.num_requests,
                qps=paper_start_qps(self.workload),
                resolution=self.resolution,
            )
            if qps:
                next_qps = rates.qps(rates.nearest(qps) + 1)
                probe = dataclasses.replace(probe, qps=next_qps)
                if not run_cell(probe)["passes"]:
                    continue
            found = run_cell(dataclasses.replace(probe, kind="goodput"))
            if found["qps"] > qps:
                qps, best = found["qps"], (limit_tokens, options)
        choice = Choice(
            shape=self.shape,
            workload=self.workload,
            row=self.row.name,
            limit_tokens=best[0],
            options=best[1],
            qps=qps,
            num_tried=len(grid),
            seed=self.seed,
            num_requests=self.num_requests,
        )
        return dataclasses.asdict(choice)
