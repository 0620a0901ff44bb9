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
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.marked_pages import write_study
from benchmarks.slidingserve.config import TUNING_SEED, Config
from benchmarks.slidingserve.rows import TUNED_ROWS
from benchmarks.slidingserve.stages import Reproduction, ratios
from benchmarks.slidingserve.tables import all_tables
from benchmarks.slidingserve.tuning import (
    Choice,
    Settings,
    TuneTask,
    read_settings,
    write_settings,
)
from jserve.flags import define_config_flags
from jserve.program import ProgramError, run_program
from jserve.progress import Progress, timed_lines
from jserve_tools.reporting.documents import commit, plain
from jserve_tools.reporting.finished_runs import FinishedRuns
from jserve_tools.reporting.sweep import run_all

_read_config = define_config_flags(Config, group="Reproduction")


def _tune(config: Config, finish: Any) -> dict[str, Any]:
    """Tunes rows and writes their settings; other settings in the file stay."""
    tasks = [
        TuneTask(
            row=row,
            workload=workload,
            shape=shape,
            seed=TUNING_SEED,
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
    work = Reproduction(config, settings, finish)
    results: dict[str, Any] = {stage: getattr(work, stage)() for stage in config.stages}
    if "goodput" in results:
        results["ratios"] = ratios(results["goodput"])
    report = {
        "commit": commit(),
        "machine": {"processor": platform.machine(), "num_cpus": os.cpu_count()},
        "command": ["reproduce.py", *sys.argv[1:]],
        "plan": {
            **{"shapes": config.shapes, "workloads": config.workloads},
            **{"seeds": list(config.seeds), "num_requests": config.probe_requests},
            "resolution": config.resolution,
            "transient_duration_s": config.transient_s,
        },
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
            progress=Progress(timed_lines()),
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
