"""Reproduces the claims of the SA scheduler (arXiv 2504.14966) in the simulator.

  python -m benchmarks.annealing.reproduce                    # 20 draws, 2 runs a load
  python -m benchmarks.annealing.reproduce --num_draws=100 --num_runs=10
  python -m benchmarks.annealing.reproduce --policies=fcfs,sjf,annealing

Writes results.json, and fills the marked tables of the README.md beside it. An
interrupted call is continued. The last line of stdout is one JSON document.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from benchmarks.annealing.study import (
    BASE,
    LENGTHS,
    MACHINE,
    POLICIES,
    SEARCHED,
    SORTED,
    STUDIES,
    Cell,
    cells,
    claims,
    pool,
)
from benchmarks.annealing.task_classes import CHAT, CODE
from benchmarks.marked_pages import markdown, write_study
from jserve.flags import define_config_flags
from jserve.program import ProgramError, run_program
from jserve.progress import Progress, timed_lines
from jserve_tools.reporting.documents import commit
from jserve_tools.reporting.finished_runs import FinishedRuns
from jserve_tools.reporting.sweep import run_all

Entry = Mapping[str, Any]
_HERE = pathlib.Path(__file__).parent

# The paper's claims in its abstract: two maxima, against vLLM and LMDeploy, which may
# come from different experiments.
CLAIMS = {"attainment_ratio": 5.0, "latency_ratio": 1.0 - 0.316}
RECONSTRUCTED = {
    "objectives": "30 s for code completions, 10 s and 50 ms for chat",
    "starts": "sorted by predicted latency, and by arrival",
    "early exit": "where the sorted start attains every SLO in batches of one",
    "moves": "into the batch before, into the one after, exchange of two",
    "temperatures": "shares of one job, cooling four times",
    "predicted lengths": "exact, or learned by class",
    "memory": "KV tokens of a batch within those free",
    "models, machines, batch sizes": MACHINE,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Policies, size and output of the study.

    Attributes:
      policies: Policies to compare; fcfs, sjf and annealing must be among them.
      num_draws: Number of draws of requests that are due at once.
      num_runs: Number of runs at each load.
      studies: Parts of the study: at once, arrivals, lengths.
      num_processes: Number of processes; 0 takes one for each CPU.
      resume: Continue an interrupted call of the same commit.
      output: Folder for the results.
    """

    policies: tuple[str, ...] = POLICIES
    num_draws: int = 20
    num_runs: int = 2
    studies: tuple[str, ...] = STUDIES
    num_processes: int = 0
    resume: bool = True
    output: pathlib.Path = _HERE

    def __post_init__(self) -> None:
        for name, values, known in (
            ("policies", self.policies, POLICIES),
            ("studies", self.studies, STUDIES),
        ):
            if not values or not set(values) <= set(known):
                raise ValueError(f"{name}={','.join(values)}: known are {known}")
        missing = {BASE, SORTED, SEARCHED} - set(self.policies)
        if missing:
            raise ValueError(f"policies lacks {', '.join(sorted(missing))}")
        if min(self.num_draws, self.num_runs) < 1:
            raise ValueError("num_draws and num_runs must be 1 or more")


def run_cells(
    config: StudyConfig, chosen: Sequence[Cell], runs: FinishedRuns
) -> list[dict[str, Any]]:
    """Returns an entry for each cell, with its gains over the base.

    Studies share the cells that differ only in the study's name.
    """
    shared = [dataclasses.replace(cell, study="") for cell in chosen]
    todo = list(dict.fromkeys(shared))
    draws = run_all(
        "cells",
        todo,
        progress=Progress(timed_lines()),
        num_processes=config.num_processes or os.cpu_count() or 1,
        runs=runs,
    )
    draws_of = dict(zip(todo, draws, strict=True))
    return [
        dataclasses.asdict(cell) | pool(draws_of[one], draws_of[one.base])
        for cell, one in zip(chosen, shared, strict=True)
    ]


def _attainment(entry: Entry) -> str:
    mean = 100 * entry["attainment_mean_tpot"]
    strict = 100 * entry["attainment"]
    text = f"{strict:.1f}"
    return text if abs(mean - strict) < 0.05 else f"{text} / {mean:.1f}"


_MEASURES: dict[str, tuple[str, Callable[[Entry], str]]] = {
    "attainment": ("attainment, %", _attainment),
    "latency": ("mean latency, s", lambda one: f"{one['mean_e2e_s']:.1f}"),
    "goal": ("G, 1/1000 s", lambda one: f"{1e3 * one['goal_per_s']:.1f}"),
}


def _grid(
    entries: Sequence[Entry],
    title: str,
    row_of: Callable[[Entry], str],
    cell_of: Callable[[Entry], str],
) -> str:
    """Returns a table of cells by policies."""
    policies = list(dict.fromkeys(one["policy"] for one in entries))
    rows: dict[str, dict[str, str]] = {}
    for one in entries:
        rows.setdefault(row_of(one), {})[one["policy"]] = cell_of(one)
    return markdown(
        [title, *policies],
        [
            [row, *(found.get(policy, "-") for policy in policies)]
            for row, found in rows.items()
        ],
    )


def _row(one: Entry) -> str:
    if one["load"]:
        limit = one["max_num_seqs"] or "the machine's 256"
        return f"b_max = {limit}: {one['load']:g} x capacity"
    return f"N = {one['num_requests']}, b_max = {one['max_num_seqs']}"


def _ratio(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return "-"
    if interval is None:
        return f"{value:.2f}"
    return f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"


def tables_of(entries: Sequence[Entry], found: Sequence[Entry]) -> dict[str, str]:
    """Returns Markdown tables by the names of their places in the page."""
    # Each study.
    tables = {}
    at_once = [one for one in entries if one["study"] == "at once"]
    arrivals = [one for one in entries if one["study"] == "arrivals"]
    for name, (title, cell_of) in _MEASURES.items():
        for mix in dict.fromkeys(one["mix"] for one in at_once):
            own = [one for one in at_once if one["mix"] == mix]
            place = f"one-shot-{mix}-{name}".replace("_", "-")
            tables[place] = _grid(own, title, _row, cell_of)
        if arrivals:
            tables[f"arrivals-{name}"] = _grid(arrivals, title, _row, cell_of)
    lengths = [one for one in entries if one["study"] == "lengths"]
    if lengths:
        tables["lengths"] = _grid(
            lengths,
            "attainment, % (mean latency, s)",
            lambda one: one["lengths"] if one["policy"] != BASE else "-",
            lambda one: f"{100 * one['attainment']:.1f} ({one['mean_e2e_s']:.1f})",
        )
    # The claims, beside the paper's.
    rows = [
        [
            f"{one['mix']}, {one['policy']}",
            *(
                text
                for name in CLAIMS
                for text in (
                    _ratio(one[name]["median"]),
                    f"{_ratio(one[name]['best'])} (N {{}}, b {{}})".format(
                        *one[name]["best_cell"]
                    ),
                )
            ),
            "-" if one["share"] is None else f"{100 * one['share']:.0f} %",
        ]
        for one in found
    ]
    paper = [f"up to {CLAIMS['attainment_ratio']:g}", f"{CLAIMS['latency_ratio']:.2f}"]
    rows.append(
        ["*paper, against vLLM and LMDeploy*", "-", paper[0], "-", paper[1], "-"]
    )
    header = ["reconstructed setting, over fcfs", "attainment: median", "best cell"]
    header += ["mean latency: median", "best cell", "share of annealing's attainment"]
    tables["claims"] = markdown(header, rows)
    # Gains of the search, and what is reconstructed.
    tables["search"] = markdown(
        [f"{SEARCHED} over {BASE}", "attainment", "mean latency"],
        [
            [
                f"{one['mix']}, {_row(one)}",
                *(_ratio(one[name], one[f"{name}_ci95"]) for name in CLAIMS),
            ]
            for one in at_once
            if one["policy"] == SEARCHED
        ],
    )
    tables["reconstructed"] = markdown(
        ["reconstructed: the paper's is not known", "here"],
        [list(pair) for pair in RECONSTRUCTED.items()],
    )
    return tables


def main(argv: Sequence[str]) -> None:
    """Runs the study and writes its results."""
    del argv  # the flags say it all
    logging.set_verbosity(logging.WARNING)  # every process logs its compiler
    try:
        config = _CONFIG()
    except ValueError as error:
        raise ProgramError(str(error)) from error
    config.output.mkdir(parents=True, exist_ok=True)
    runs = FinishedRuns(config.output / "runs.jsonl", resumes=config.resume)
    chosen = [
        cell
        for cell in cells(config.num_draws, config.num_runs, config.policies)
        if cell.study in config.studies
    ]
    entries = run_cells(config, chosen, runs)
    found = claims(entries)
    tables = tables_of(entries, found)
    report = {
        "commit": commit(),
        "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
        "cost_model": MACHINE,
        "service_classes": [dataclasses.asdict(one) for one in (CODE, CHAT)],
        "reconstructed": RECONSTRUCTED,
        "published": CLAIMS,
        "lengths": LENGTHS,
        "claims": found,
        "entries": entries,
    }
    write_study(config.output, report, tables=tables, pictures={})
    runs.remove()
    for name, table in tables.items():
        print(f"{name}\n\n{table}\n")
    print(json.dumps({"commit": report["commit"], "claims": found}))


if __name__ == "__main__":
    _CONFIG = define_config_flags(StudyConfig, group="Study")
    run_program(sys.modules[__name__])
