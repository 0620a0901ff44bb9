"""Reproduces SlidingServe's experiments in the simulator, beside the paper's numbers.

  python -m benchmarks.slidingserve.reproduce                # quick: under 30 minutes
  python -m benchmarks.slidingserve.reproduce --mode=full    # hours
  python -m benchmarks.slidingserve.reproduce --stages=tune  # settings.json again

The stages are goodput (the paper's Fig. 4), overload (Fig. 5), transient load (Fig. 6)
and ablation (Table 4), each without padding (continuous) and with buckets. An
interrupted call continues where it stopped, if the commit is the same. The results are
results.json, tables.md and pictures; the marked tables of a README.md beside them are
filled. The last line of stdout is one JSON document.
"""

import dataclasses
import functools
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

from benchmarks.marked_pages import write_study
from benchmarks.slidingserve import paper
from benchmarks.slidingserve.cells import BUCKETS, CONTINUOUS
from benchmarks.slidingserve.rows import TUNED_ROWS
from benchmarks.slidingserve.stages import Plan, Reproduction, ratios
from benchmarks.slidingserve.tables import all_tables
from benchmarks.slidingserve.tuning import (
    Choice,
    Settings,
    TuneTask,
    read_settings,
    write_settings,
)
from jserve.config import check_range
from jserve.flags import define_config_flags
from jserve.program import ProgramError, run_program
from jserve.progress import Progress, timed_lines
from jserve_tools.reporting.documents import commit, plain
from jserve_tools.reporting.finished_runs import FinishedRuns
from jserve_tools.reporting.sweep import run_all

_HERE = pathlib.Path(__file__).parent
_TUNING_SEED = 0

Stage = Literal["goodput", "ablation", "overload", "transient", "tune"]
Shape = Literal["continuous", "buckets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Experiments, their size, and the files of settings and results.

    Attributes:
      mode: Size of the experiments: quick has 1,000 requests in a probe and 2 seeds,
        full 3,000 and 5.
      stages: Experiments to run; or only tune, which writes the settings.
      shapes: Padding to run with: continuous has none, buckets pads to powers of two.
      workloads: Workloads to run.
      tuned_rows: Names of the rows that the stage tune tunes. [default: all]
      num_requests: Number of requests in a probe. [default: that of the mode]
      num_seeds: Number of seeds to judge by, from 1 on. [default: that of the mode]
      tune_requests: Number of requests in a probe while tuning.
      resolution: Relative distance of the rates tried for goodput.
      transient_s: Duration of the transient run, in seconds.
      num_processes: Number of processes that share the work. [default: one per CPU]
      settings: File of tuned settings.
      output: Folder for the results. [default: out/slidingserve/quick, or with
        --mode=full the folder of this program]
    """

    mode: Literal["quick", "full"] = "quick"
    stages: tuple[Stage, ...] = ("goodput", "ablation", "overload", "transient")
    shapes: tuple[Shape, ...] = (CONTINUOUS, BUCKETS)
    workloads: tuple[paper.Workload, ...] = paper.WORKLOADS
    tuned_rows: tuple[str, ...] = ()
    num_requests: int = 0
    num_seeds: int = 0
    tune_requests: int = 1000
    resolution: float = 0.02
    transient_s: float = paper.TRANSIENT_DURATION_S
    num_processes: int = 0
    settings: pathlib.Path = _HERE / "settings.json"
    output: pathlib.Path | None = None

    def __post_init__(self) -> None:
        names = [row.name for row in TUNED_ROWS]
        if not set(self.tuned_rows) <= set(names):
            raise ValueError(
                f"tuned_rows={','.join(self.tuned_rows)}: known are {names}"
            )
        if "tune" in self.stages and len(self.stages) > 1:
            raise ValueError(f"stages={','.join(self.stages)}: tune runs alone")
        for name in ("num_requests", "tune_requests"):
            if getattr(self, name):
                check_range(name, getattr(self, name), 20, 10**6)
        check_range("resolution", self.resolution, 1e-4, 1.0)

    @property
    def plan(self) -> Plan:
        """Plan of the experiments."""
        is_full = self.mode == "full"
        num_seeds = self.num_seeds or (5 if is_full else 2)
        return Plan(
            shapes=self.shapes,
            workloads=self.workloads,
            seeds=range(_TUNING_SEED + 1, _TUNING_SEED + 1 + num_seeds),
            num_requests=self.num_requests or (3000 if is_full else 1000),
            resolution=self.resolution,
            transient_duration_s=self.transient_s,
        )

    @property
    def folder(self) -> pathlib.Path:
        """Folder for the results."""
        return self.output or (
            _HERE if self.mode == "full" else pathlib.Path("out/slidingserve/quick")
        )


_read_config = define_config_flags(Config, group="Reproduction")


def _tune(config: Config, finish: Any) -> dict[str, Any]:
    """Tunes rows and writes their settings; other settings in the file stay."""
    tasks = [
        TuneTask(
            row=row,
            workload=workload,
            shape=shape,
            seed=_TUNING_SEED,
            num_requests=config.tune_requests,
            resolution=config.resolution,
        )
        for shape in config.shapes
        for workload in config.workloads
        for row in TUNED_ROWS
        if not config.tuned_rows or row.name in config.tuned_rows
        if shape in row.shapes and workload in row.workloads
    ]
    now = commit()
    choices = [Choice(**one | {"commit": now}) for one in finish(tasks)]
    write_settings(
        config.settings, Settings([*read_settings(config.settings).choices, *choices])
    )
    return {"settings": str(config.settings), "num_tuned": len(choices)}


def _reproduce(config: Config, finish: Any) -> dict[str, Any]:
    """Runs the stages, writes their results and prints the tables."""
    from benchmarks.slidingserve.pictures import draw_all  # workers do not need Altair

    start_s = time.monotonic()
    settings = read_settings(config.settings)
    work = Reproduction(config.plan, settings, finish)
    results: dict[str, Any] = {stage: getattr(work, stage)() for stage in config.stages}
    if "goodput" in results:
        results["ratios"] = ratios(results["goodput"])
    plan = config.plan
    report = {
        "commit": commit(),
        "machine": {"processor": platform.machine(), "num_cpus": os.cpu_count()},
        "command": ["reproduce.py", *sys.argv[1:]],
        "plan": dataclasses.asdict(plan) | {"seeds": list(plan.seeds)},
        "settings": [dataclasses.asdict(one) for one in settings.choices],
        **results,
    }
    tables = all_tables(report, settings)
    write_study(config.folder, report, tables=tables, pictures=draw_all(report))
    for name, table in tables.items():
        print(f"{name}\n\n{table}\n")
    return {
        "output": str(config.folder),
        "wall_s": round(time.monotonic() - start_s, 1),
        "ratios": plain(results.get("ratios", [])),
    }


def main(argv: Sequence[str]) -> int:
    """Tunes, or runs the stages and writes their results."""
    del argv
    try:
        config = _read_config()
        runs = FinishedRuns(config.folder / "runs.jsonl", resumes=True)
        num_processes = config.num_processes or os.cpu_count() or 1
        finish = functools.partial(
            run_all,
            "cells",
            progress=Progress(timed_lines(), is_bar=sys.stderr.isatty()),
            num_processes=num_processes,
            runs=runs,
        )
        summary = (_tune if "tune" in config.stages else _reproduce)(config, finish)
    except (ValueError, OSError) as error:
        raise ProgramError(str(error)) from error
    runs.remove()
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    run_program(sys.modules[__name__])
