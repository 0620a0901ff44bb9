"""Reproduces SlidingServe's experiments in the simulator, beside the paper's numbers.

  python benchmarks/slidingserve/reproduce.py                # quick: under 30 minutes
  python benchmarks/slidingserve/reproduce.py --mode=full    # the committed tables
  python benchmarks/slidingserve/reproduce.py --stages=tune  # settings.json anew

Goodput (the paper's Fig. 4), overload (Fig. 5), transient load (Fig. 6) and ablation
(Table 4), on continuous shapes and on buckets. Every finished cell is kept under
out/slidingserve, so a second call goes on where the first one stopped; after a change
of policies or simulator remove that folder, or name another. The results are
results.json, tables.md and pictures; a README.md that lies beside them gets its
marked tables filled. The last line of stdout is one JSON document.
"""

import dataclasses
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

import paper
from absl import flags
from cell_store import CellStore, Workers
from cells import BUCKETS, CONTINUOUS
from markdown_tables import all_tables
from rows import TUNED_ROWS
from settings import read_settings, write_settings
from stages import Entry, Plan, Reproduction, ratios
from tuning import TuneTask

from jserve.program import ProgramError, check_known, run_program
from jserve_tools.documents import commit, plain
from jserve_tools.marked_pages import write_study

_HERE = pathlib.Path(__file__).parent
_STAGES = ("goodput", "ablation", "overload", "transient")
_TUNE = "tune"
_TUNING_SEED = 0

_MODE = flags.DEFINE_enum(
    "mode",
    "quick",
    ["quick", "full"],
    "quick: 1,000 requests a probe and 2 seeds; full: 3,000 and 5.",
)
_STAGES_FLAG = flags.DEFINE_list(
    "stages", list(_STAGES), f"Any of {', '.join(_STAGES)}; or {_TUNE} alone."
)
_SHAPES = flags.DEFINE_list("shapes", [CONTINUOUS, BUCKETS], "Shapes to run.")
_WORKLOADS = flags.DEFINE_list("workloads", list(paper.WORKLOADS), "Workloads to run.")
_ROWS = flags.DEFINE_list(
    "tuned_rows", [], "With tune: only these rows, by name; all if empty."
)
_NUM_REQUESTS = flags.DEFINE_integer(
    "num_requests", 0, "Requests in a probe; 0: as the mode says.", lower_bound=0
)
_NUM_SEEDS = flags.DEFINE_integer(
    "num_seeds", 0, "Seeds that judge, from 1 on; 0: as the mode says.", lower_bound=0
)
_TUNE_REQUESTS = flags.DEFINE_integer(
    "tune_requests", 1000, "Requests in a probe while tuning.", lower_bound=20
)
_RESOLUTION = flags.DEFINE_float(
    "resolution", 0.02, "Relative distance of the rates tried for goodput."
)
_TRANSIENT_S = flags.DEFINE_float(
    "transient_s", paper.TRANSIENT_DURATION_S, "Length of the transient run, seconds."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", 0, "Processes; 0: one a CPU.", lower_bound=0
)
_CELLS = flags.DEFINE_string(
    "cells", "", "Folder of finished cells; out/slidingserve/MODE/cells if empty."
)
_SETTINGS = flags.DEFINE_string(
    "settings", str(_HERE / "settings.json"), "File of tuned settings."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    "",
    "Folder of the results; out/slidingserve/quick, or this program's if full.",
)

_NUM_REQUESTS_OF = {"quick": 1000, "full": 3000}
_NUM_SEEDS_OF = {"quick": 2, "full": 5}


def _plan() -> Plan:
    mode = _MODE.value
    num_requests = _NUM_REQUESTS.value or _NUM_REQUESTS_OF[mode]
    if num_requests < 20:
        raise ProgramError(f"--num_requests={num_requests} is below 20")
    num_seeds = _NUM_SEEDS.value or _NUM_SEEDS_OF[mode]
    return Plan(
        shapes=_SHAPES.value,
        workloads=_WORKLOADS.value,
        seeds=range(_TUNING_SEED + 1, _TUNING_SEED + 1 + num_seeds),
        num_requests=num_requests,
        resolution=_RESOLUTION.value,
        transient_duration_s=_TRANSIENT_S.value,
    )


def _tune(workers: Workers, path: pathlib.Path) -> dict[str, Any]:
    """Tunes every row and writes the settings; others in the file stay."""
    names = [row.name for row in TUNED_ROWS]
    chosen = _ROWS.value or names
    check_known("tuned_rows", chosen, names)
    tasks = [
        TuneTask(
            row=row,
            workload=workload,
            shape=shape,
            seed=_TUNING_SEED,
            num_requests=_TUNE_REQUESTS.value,
            resolution=_RESOLUTION.value,
        )
        for shape in _SHAPES.value
        for workload in _WORKLOADS.value
        for row in TUNED_ROWS
        if row.name in chosen and shape in row.shapes and workload in row.workloads
    ]
    choices = workers.finish(tasks, "tune")
    write_settings(path, read_settings(path).updated(choices))
    return {"settings": str(path), "num_tuned": len(choices)}


def _brief(entry: Entry) -> Entry:
    """Returns a cell's entry without its long lists."""
    result = {
        name: value
        for name, value in entry["result"].items()
        if not isinstance(value, list)
    }
    return entry | {"result": result}


def _write_results(report: Entry, tables: dict[str, str], folder: pathlib.Path) -> None:
    # Matplotlib takes a second to import, and the workers import this module.
    from pictures import draw_all

    write_study(folder, report, tables=tables, pictures=draw_all(report))


def _reproduce(workers: Workers, plan: Plan, output: pathlib.Path) -> dict[str, Any]:
    start_s = time.monotonic()
    settings = read_settings(pathlib.Path(_SETTINGS.value))
    work = Reproduction(plan, settings, workers)
    results = {stage: getattr(work, stage)() for stage in _STAGES_FLAG.value}
    if "goodput" in results:
        results["ratios"] = ratios(results["goodput"])
    now = commit()
    num_other = sum(one["commit"] != now for one in work.cells)
    if num_other:
        print(f"{num_other} cells were computed at another commit than {now}")
    report = {
        "commit": now,
        "cell_commits": sorted({str(one["commit"]) for one in work.cells}),
        "machine": {"processor": platform.machine(), "num_cpus": os.cpu_count()},
        "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
        "plan": dataclasses.asdict(plan) | {"seeds": list(plan.seeds)},
        "cpu_s": sum(one["cpu_s"] for one in work.cells),
        "settings": [dataclasses.asdict(one) for one in settings.choices],
        **results,
        "cells": [_brief(one) for one in work.cells],
    }
    tables = all_tables(report, settings)
    _write_results(report, tables, output)
    for name, table in tables.items():
        print(f"{name}\n\n{table}\n")
    return {
        "output": str(output),
        "num_cells": len(work.cells),
        "num_cells_of_other_commits": num_other,
        "cpu_s": round(report["cpu_s"], 1),
        "wall_s": round(time.monotonic() - start_s, 1),
        "ratios": plain(results.get("ratios", [])),
    }


def main(argv: Sequence[str]) -> int:
    """Tunes, or runs the stages and writes their results."""
    del argv
    stages = _STAGES_FLAG.value
    check_known("stages", stages, [_TUNE] if _TUNE in stages else _STAGES)
    check_known("shapes", _SHAPES.value, [CONTINUOUS, BUCKETS])
    check_known("workloads", _WORKLOADS.value, paper.WORKLOADS)
    mode = _MODE.value
    here = _HERE if mode == "full" else pathlib.Path("out/slidingserve/quick")
    cells = pathlib.Path(_CELLS.value or f"out/slidingserve/{mode}/cells")
    num_processes = _NUM_PROCESSES.value or os.cpu_count() or 1
    try:
        plan = _plan()
        store = CellStore(folder=cells.resolve(), commit=commit())
        with Workers(store, num_processes) as workers:
            if stages == [_TUNE]:
                done = _tune(workers, pathlib.Path(_SETTINGS.value))
            else:
                output = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else here
                done = _reproduce(workers, plan, output)
    except ValueError as error:
        raise ProgramError(str(error)) from error
    print(json.dumps(done))
    return 0


if __name__ == "__main__":
    run_program(sys.modules[__name__])
