"""Compares the policies on jserve's kinds of load, simulated on an A100.

  python -m benchmarks.policies.study                 # prints its hours first
  python -m benchmarks.policies.study --minutes=0     # only the tables, of what is done

The stages run in the order of `stages`, the most telling ones first; the tables of what
is finished are written into the page after each. An interrupted call continues where it
stopped. Nothing was tuned on the seeds.
"""

import dataclasses
import itertools
import pathlib
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.marked_pages import fill_page
from benchmarks.policies.cells import (
    ADMISSION_LOADS,
    BURST,
    BURST_LOAD,
    FEW,
    FITTED,
    GOODPUT_LOADS,
    KINDS,
    LENGTHS,
    LOADS,
    MORE,
    POLICIES,
    REFUSE,
    TURNS,
    WITH_TTLT,
    Cell,
    sched_version,
)
from benchmarks.policies.tables import Found, all_tables
from jserve.flags import define_config_flags
from jserve.program import run_program
from jserve.progress import Progress, timed_lines
from jserve_tools.reporting.finished_runs import FinishedRuns
from jserve_tools.reporting.sweep import run_all, task_key

_HERE = pathlib.Path(__file__).parent
_FIT_SEED = 40  # no run is made with it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How much is simulated, and where it goes.

    Attributes:
      seeds: Seeds of lengths, arrivals and disturbances.
      num_requests: Requests in a run; the first tenth is not counted.
      kinds: Kinds of load.
      num_processes: Processes that share the work.
      minutes: After how many minutes no further stage is begun.
      output: Folder for the finished cells.
      page: Page whose marked places get the tables.
    """

    seeds: tuple[int, ...] = (41, 42, 43)
    num_requests: int = 200
    kinds: tuple[str, ...] = tuple(KINDS)
    num_processes: int = 2
    minutes: float = 60.0
    output: pathlib.Path = pathlib.Path("out/policies/study")
    page: pathlib.Path = _HERE / "README.md"


def _cells(
    config: Config,
    policies: Sequence[str],
    condition: str,
    *loads: float,
    times: int = 1,
    **more: Any,
) -> list[Cell]:
    """Returns a cell for each kind, load, policy and seed; `more` are its fields."""
    return [
        Cell(
            **{"policy": policy, "kind": kind, "condition": condition} | more,
            load=load,
            seed=seed,
            num_requests=times * config.num_requests,
        )
        for kind in config.kinds
        for load in loads
        for policy in policies
        for seed in config.seeds
    ]


def stages(config: Config) -> dict[str, list[Cell]]:
    """Returns the cells of each stage. Those of `fitted` still lack their buckets."""
    made: dict[str, list[Cell]] = {}

    def add(name: str, *what: Any, **more: Any) -> None:
        made.setdefault(name, []).extend(_cells(config, *what, **more))

    fits = _cells(config, FITTED, "fitted", 1.0)
    for load in LOADS:
        for condition in ("real", "exact"):
            add(f"{condition} {load:g}", tuple(POLICIES), condition, load)
        if load == LOADS[1]:
            add("goodput", FEW[:3], "exact", *GOODPUT_LOADS, times=3)
        if load == LOADS[0]:
            firsts = [one for one in fits if one.seed == config.seeds[0]]
            made["fits"] = [dataclasses.replace(one, seed=_FIT_SEED) for one in firsts]
            add(f"fitted {load:g}", FITTED, "fitted", load)
    for condition in ("real", "exact"):
        add("admission", FEW[:2], condition, *ADMISSION_LOADS)
        add("admission", FEW[:1], condition, *ADMISSION_LOADS, settings=REFUSE)
    for kind, condition in itertools.product(config.kinds, ("exact", "real")):
        size = round(100 * KINDS[kind])  # for 20, 20 and 100 s
        one = dataclasses.replace(config, kinds=(kind,), num_requests=size)
        what = FEW[:1], condition, BURST_LOAD
        made["burst"] = made.get("burst", []) + _cells(one, *what, settings=BURST)
    ends = dataclasses.replace(config, kinds=(WITH_TTLT,))
    for lengths in LENGTHS[1:]:
        made["lengths"] = made.get("lengths", []) + _cells(
            ends, (*MORE, "annealing"), "real", LOADS[0], lengths=lengths
        )
    for load in LOADS[1:]:
        add(f"fitted {load:g}", FITTED, "fitted", load)
    add("overload", MORE, "real", 3.0)
    for kind, on in itertools.product(TURNS, (True, False)):
        settings = (("enable_prefix_caching", on),)
        made["turns"] = made.get("turns", []) + _cells(
            dataclasses.replace(config, kinds=(kind,)),
            *(MORE, "real", LOADS[0]),
            settings=settings,
        )
    return made


def _with_buckets(
    cells: Iterable[Cell], fits: list[Cell], runs: FinishedRuns
) -> list[Cell]:
    """Returns the cells, those of `fitted` with what their policy and kind got."""
    tables = {(one.policy, one.kind): runs.get(task_key(one)) for one in fits}
    ready = []
    for one in cells:
        if one.condition == "fitted" and one.seed != _FIT_SEED:
            if not (found := tables[one.policy, one.kind]):
                continue
            one = dataclasses.replace(one, buckets=found["table"])
        ready.append(one)
    return ready


def run(config: Config) -> None:
    """Runs what is not finished, and fills the page after each stage."""
    start_s = time.monotonic()
    file = config.output / "cells.jsonl"
    runs = FinishedRuns(file, resumes=True, version=sched_version())
    made, left_s = stages(config), {}
    for name, cells in made.items():
        ready = _with_buckets(cells, made["fits"], runs) or cells
        costs_s = [one.cost_s for one in ready if runs.get(task_key(one)) is None]
        left_s[name] = round(sum(costs_s) / config.num_processes)
    print(f"{sum(left_s.values()) / 3600:.2f} hours, seconds: {left_s}", flush=True)
    progress = Progress(timed_lines())
    for name, cells in made.items():
        if time.monotonic() - start_s < 60 * config.minutes:
            run_all(
                name,
                _with_buckets(cells, made["fits"], runs),
                progress=progress,
                num_processes=config.num_processes,
                runs=runs,
            )
        # A cell may be in two stages.
        every = dict.fromkeys(itertools.chain.from_iterable(made.values()))
        ready = _with_buckets(every, made["fits"], runs)
        done = [(one, runs.get(task_key(one))) for one in ready]
        tables = all_tables(Found(pair for pair in done if pair[1]), config.kinds)
        config.page.write_text(fill_page(config.page.read_text(), tables))


def main(argv: Sequence[str]) -> None:
    """Runs the study that the flags describe."""
    del argv
    run(_read_config())


if __name__ == "__main__":
    _read_config = define_config_flags(Config, group="Study")
    run_program(sys.modules[__name__])
