"""Runs many simulations, in this process or in several.

A task holds all that decides its numbers and can be sent to another process, so a sweep
gives the same report however many processes share it, and is continued where it was
interrupted.
"""

import contextlib
import dataclasses
import math
import multiprocessing
import pathlib
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import tqdm

from jserve.progress import Progress, timed_lines
from jserve_sched.goodput import (
    MAX_VIOLATION_SHARE,
    Goodput,
    RateGrid,
    SeedGoodput,
    most_violations,
    pool,
    search_seed,
)
from jserve_sched.workload import Arrival, Yardstick, at_rate
from jserve_tools.bucket_fits import fit_to_simulation
from jserve_tools.finished_runs import FinishedRuns
from jserve_tools.simulate_config import SweepConfig
from jserve_tools.simulation import Experiment


class Task(Protocol):
    """Something to do, here or in another process."""

    def run(self) -> dict[str, Any]:
        """Does it; returns what came of it, for JSON."""
        ...


RunAll = Callable[[Sequence[Task]], list[dict[str, Any]]]
"""Runs tasks and returns what came of each, in order."""


def _run(job: tuple[int, Task]) -> tuple[int, dict[str, Any]]:
    index, task = job
    return index, task.run()


def _ignore_interrupts() -> None:
    """Lets Ctrl-C end the program, not each of its processes with a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_all(
    tasks: Sequence[Task],
    num_processes: int = 1,
    runs: FinishedRuns | None = None,
    key: Callable[[Any], Mapping[str, Any]] = dataclasses.asdict,
) -> list[dict[str, Any]]:
    """Returns what came of each task, in order, and shows how far it has come.

    Args:
      tasks: what to do.
      num_processes: processes that share them; 1 does all in this one.
      runs: finished tasks, which are not done again; None keeps none.
      key: returns the configuration by which `runs` knows a task.
    """
    found: list[Any] = [runs and runs.get(key(task)) for task in tasks]
    jobs = [(index, tasks[index]) for index, one in enumerate(found) if one is None]
    bar = tqdm.tqdm(total=len(jobs), desc="simulate", unit="run", disable=None)

    def finish(done: Iterable[tuple[int, dict[str, Any]]]) -> None:
        for index, result in done:
            found[index] = result
            if runs is not None:
                runs.put(key(tasks[index]), result)
            bar.update()

    def count() -> int:
        return sum(one is not None for one in found)

    with contextlib.ExitStack() as stack:
        stack.enter_context(bar)
        if jobs and not sys.stderr.isatty():
            progress = Progress(timed_lines())
            stack.enter_context(progress.doing("simulate", len(found), count))
        if min(num_processes, len(jobs)) <= 1:
            finish(map(_run, jobs))
        else:
            processes = multiprocessing.get_context("spawn")
            workers = stack.enter_context(
                processes.Pool(min(num_processes, len(jobs)), _ignore_interrupts)
            )
            finish(workers.imap_unordered(_run, jobs))
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateTask:
    """One run at one rate with one seed.

    Attributes:
      experiment: What is run.
      seed: Seed of the requests.
      qps: Their rate; infinite if all come at once.
      step_log: File for the steps; None for none.
    """

    experiment: Experiment
    seed: int
    qps: float
    step_log: pathlib.Path | None = None

    def run(self) -> dict[str, Any]:
        """Returns an entry of the report's `runs`."""
        return self.experiment.run(qps=self.qps, seed=self.seed, step_log=self.step_log)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitTask:
    """Fits buckets to one load under one policy.

    Attributes:
      experiment: What is run; of its buckets only the size of a block matters.
      seed: Seed of the requests, by which no run is judged.
      qps: Their rate; infinite if all come at once; None for a guess of the goodput.
      max_programs: Most programs.
    """

    experiment: Experiment
    seed: int
    qps: float | None
    max_programs: int

    def run(self) -> dict[str, Any]:
        """Returns the bucket file `table`, and an entry of the report's `fits`."""
        experiment, seed = self.experiment, self.seed
        qps = self.qps or guess_qps(experiment.units(seed), experiment.yardstick)
        history = fit_to_simulation(
            experiment,
            experiment.arrivals(seed, qps),
            seed=seed,
            max_programs=self.max_programs,
        )
        labels: dict[str, Any] = {
            "policy": experiment.policy,
            "seed": seed,
            **({"qps": qps} if math.isfinite(qps) else {}),
            "max_programs": self.max_programs,
        }
        return {"table": history.table.to_json(), "fit": labels | history.to_json()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoodputTask:
    """The search for one seed's goodput."""

    experiment: Experiment
    seed: int
    start_qps: float
    grid: RateGrid
    max_share: float

    def run(self) -> dict[str, Any]:
        """Returns the fields of SeedGoodput; hopeless probes are cut short."""
        experiment = self.experiment
        units = experiment.units(self.seed)
        num_warmup = experiment.num_warmup(units)
        limit = most_violations(len(units) - num_warmup, self.max_share)

        def probe(qps: float, seed: int) -> tuple[int, int]:
            result = experiment.simulate(
                at_rate(units, qps), seed, stop_after_violations=limit
            )
            counted = result.outcomes[num_warmup:]
            return sum(not one.is_met for one in counted), len(counted)

        found = search_seed(
            probe,
            self.seed,
            grid=self.grid,
            start_qps=self.start_qps,
            max_share=self.max_share,
        )
        return dataclasses.asdict(found)


def guess_qps(arrivals: Sequence[Arrival], yardstick: Yardstick) -> float:
    """Returns a rate near the goodput, for a search to start from.

    Half of what a machine could do that computes prompts one by one and shares a
    decode step among sixteen.
    """
    prefill_s = statistics.fmean(
        yardstick.isolated_ttft_s(one.num_prompt_tokens) for one in arrivals
    )
    decode_s = statistics.fmean(one.max_tokens for one in arrivals) * yardstick.step_s
    return 0.5 / (prefill_s + decode_s / 16)


def search_goodputs(
    experiments: Sequence[Experiment],
    seeds: Sequence[int],
    config: SweepConfig,
    *,
    run_all: RunAll = run_all,
) -> list[dict[str, Any]]:
    """Searches every experiment's goodput, which is the mean over the seeds.

    Returns:
      An entry of the report's `runs` each: the run of the first seed at its edge,
      with the goodput.
    """
    max_share = config.max_violation_share
    searches = []
    for one in experiments:
        start = config.start_qps or guess_qps(one.units(seeds[0]), one.yardstick)
        grid = RateGrid(
            lowest_qps=start / 100,
            highest_qps=start * 100,
            resolution=config.resolution or RateGrid.resolution,
        )
        searches += [
            GoodputTask(
                experiment=one,
                seed=seed,
                start_qps=start,
                grid=grid,
                max_share=MAX_VIOLATION_SHARE if max_share is None else max_share,
            )
            for seed in seeds
        ]
    rows = [SeedGoodput(**row) for row in run_all(searches)]
    found = [pool(rows[at : at + len(seeds)]) for at in range(0, len(rows), len(seeds))]
    edges = [
        RateTask(
            experiment=search.experiment,
            seed=search.seed,
            qps=one.seeds[0].qps or search.grid.lowest_qps,
        )
        for search, one in zip(searches[:: len(seeds)], found, strict=True)
    ]
    runs = run_all(edges)
    return [run | _labels(one) for run, one in zip(runs, found, strict=True)]


def _labels(found: Goodput) -> dict[str, Any]:
    """Returns what a searched goodput adds to an entry of `runs`."""
    labels = dataclasses.asdict(found)
    if found.ci95_qps is None:
        del labels["ci95_qps"]
    return {f"goodput_{name}": value for name, value in labels.items()}
