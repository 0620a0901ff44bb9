"""Reproduces the SA scheduler's claims in the simulator, beside what it published.

  python benchmarks/annealing/reproduce.py                 # quick: under 25 minutes
  python benchmarks/annealing/reproduce.py --mode=full     # more draws, resumable
  python benchmarks/annealing/reproduce.py --studies=one_shot --policies=fcfs,annealing

Three studies: requests that all come at once, Poisson arrivals, and wrong output
lengths. Finished cells are kept under out/annealing, so a second call of the same code
goes on where the first one stopped. The results are results.json, tables.md and
pictures; a README.md that lies beside them gets its marked tables filled, also that of
plan_time.json, which plan_time.py writes. The last line of stdout is one JSON document.
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
from typing import Any

from absl import flags, logging
from served import MACHINE
from studies import BASE, POLICIES, SEARCHED, SORTED, Plan, Studies, claims_found
from study_tables import all_tables
from task_classes import AZURE, CHAT, CODE, LONG_CODE, MIXES

from jserve.program import ProgramError, check_known, run_program
from jserve_tools.documents import commit
from jserve_tools.finished_runs import FinishedRuns
from jserve_tools.marked_pages import write_study
from jserve_tools.sweep import run_all

_HERE = pathlib.Path(__file__).parent
_STUDIES = ("one_shot", "arrivals", "lengths")
_NUMBERS = (10, 20, 50)

_MODE = flags.DEFINE_enum(
    "mode",
    "quick",
    ["quick", "full"],
    "quick: 20 draws a cell, 2 runs a load; full: 100 and 10, and every mix.",
)
_STUDIES_FLAG = flags.DEFINE_list(
    "studies", list(_STUDIES), f"Any of {', '.join(_STUDIES)}."
)
_POLICIES = flags.DEFINE_list(
    "policies", list(POLICIES), f"Policies to compare; {BASE} must be among them."
)
_NUM_DRAWS = flags.DEFINE_integer(
    "num_draws", 0, "Draws of a cell; 0: as the mode says.", lower_bound=0
)
_NUM_SEEDS = flags.DEFINE_integer(
    "num_seeds", 0, "Runs of a load; 0: as the mode says.", lower_bound=0
)
_NUM_ARRIVALS = flags.DEFINE_integer(
    "num_arrivals", 300, "Requests of one run of Poisson arrivals.", lower_bound=20
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", 0, "Processes; 0: one a CPU.", lower_bound=0
)
_CELLS = flags.DEFINE_string(
    "cells", "out/annealing/cells.jsonl", "File of finished cells."
)
_OUTPUT = flags.DEFINE_string(
    "output", "", "Folder of the results; this program's if empty."
)

_NUM_DRAWS_OF = {"quick": 20, "full": 100}
_NUM_SEEDS_OF = {"quick": 2, "full": 10}


def _plan() -> Plan:
    mode = _MODE.value
    one_shot = {AZURE.name: _NUMBERS, LONG_CODE.name: (10, 20)}
    if mode == "full":
        one_shot = dict.fromkeys(MIXES, _NUMBERS)
    return Plan(
        policies=_POLICIES.value,
        one_shot=one_shot,
        num_draws=_NUM_DRAWS.value or _NUM_DRAWS_OF[mode],
        num_arrivals=_NUM_ARRIVALS.value,
        num_seeds=_NUM_SEEDS.value or _NUM_SEEDS_OF[mode],
    )


def _write_results(report: dict[str, Any], folder: pathlib.Path) -> None:
    # Matplotlib takes a second to import, and the workers import this module.
    from study_pictures import draw_all

    times = folder / "plan_time.json"
    plan_time = json.loads(times.read_text()) if times.exists() else None
    tables = all_tables(report | {"plan_time": plan_time})
    write_study(folder, report, tables=tables, pictures=draw_all(report))
    for name, table in tables.items():
        print(f"{name}\n\n{table}\n")


def _reproduce(plan: Plan, runs: FinishedRuns) -> dict[str, Any]:
    start_s = time.monotonic()
    num_processes = _NUM_PROCESSES.value or os.cpu_count() or 1
    studies = Studies(
        plan, functools.partial(run_all, num_processes=num_processes, runs=runs)
    )
    results = {name: getattr(studies, name)() for name in _STUDIES_FLAG.value}
    if "one_shot" in results:
        results["claims"] = claims_found(results["one_shot"])
    return {
        "commit": commit(),
        "machine": {"processor": platform.machine(), "num_cpus": os.cpu_count()},
        "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
        "plan": dataclasses.asdict(plan),
        "cost_model": MACHINE,
        "service_classes": [dataclasses.asdict(one) for one in (CODE, CHAT)],
        "num_cells_found": runs.num_found,
        "wall_s": time.monotonic() - start_s,
        **results,
    }


def main(argv: Sequence[str]) -> None:
    """Runs the studies and writes their results."""
    del argv  # the flags say it all
    logging.set_verbosity(logging.WARNING)  # every process tells of its compiler
    check_known("studies", _STUDIES_FLAG.value, _STUDIES)
    check_known("policies", _POLICIES.value, POLICIES)
    missing = [one for one in (BASE, SORTED, SEARCHED) if one not in _POLICIES.value]
    if missing:
        raise ProgramError(f"--policies lacks {', '.join(missing)}: nothing to compare")
    output = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else _HERE
    try:
        runs = FinishedRuns(pathlib.Path(_CELLS.value), resumes=True)
        report = _reproduce(_plan(), runs)
    except ValueError as error:
        raise ProgramError(str(error)) from error
    _write_results(report, output)
    done = {name: report[name] for name in ("commit", "wall_s", "num_cells_found")}
    print(json.dumps(done | {"output": str(output), "claims": report.get("claims")}))


if __name__ == "__main__":
    run_program(sys.modules[__name__])
