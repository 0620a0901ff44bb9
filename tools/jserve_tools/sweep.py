"""Runs many simulations, in this process or in several.

The one idea: a task holds all that decides its numbers and can be sent to another
process, so a sweep gives the same report however many processes share it, and goes on
where it was interrupted.
"""

import dataclasses
import multiprocessing
import signal
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import tqdm

from jserve_sched.goodput import (
    MAX_VIOLATION_SHARE,
    Goodput,
    RateGrid,
    SeedGoodput,
    most_violations,
    pool,
    search_seed,
)
from jserve_sched.workload import Arrival, Yardstick, at_levels, at_rate
from jserve_tools.run_store import RunStore, run_key
from jserve_tools.simulated_loads import Levels
from jserve_tools.simulation import Experiment


class Task(Protocol):
    """Something to do, here or in another process."""

    def run(self) -> dict[str, Any]:
        """Does it; returns what came of it, for JSON."""
        ...


def _run(job: tuple[int, Task]) -> tuple[int, dict[str, Any]]:
    index, task = job
    return index, task.run()


def _leave_alone() -> None:
    """Lets Ctrl-C end the program, not each of its processes with a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_all(
    tasks: Sequence[Task], num_processes: int = 1, store: RunStore | None = None
) -> list[dict[str, Any]]:
    """Returns what came of each task, in order, with a progress bar.

    Args:
      tasks: what to do.
      num_processes: processes that share them; 1 does all in this one.
      store: of finished tasks; what is there is not done again.
    """
    keys = [run_key(task) for task in tasks]
    found: list[Any] = [None if store is None else store.get(key) for key in keys]
    jobs = [(index, tasks[index]) for index, one in enumerate(found) if one is None]

    def finish(done: Iterable[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
        for index, result in tqdm.tqdm(
            done,
            total=len(jobs),
            desc="simulate",
            unit="run",
            disable=None,
            leave=False,
        ):
            found[index] = result
            if store is not None:
                store.put(keys[index], result)
        return found

    if min(num_processes, len(jobs)) <= 1:
        return finish(map(_run, jobs))
    processes = multiprocessing.get_context("spawn")
    with processes.Pool(min(num_processes, len(jobs)), _leave_alone) as workers:
        return finish(workers.imap_unordered(_run, jobs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateTask:
    """One run at one rate, or at levels, with one seed.

    Attributes:
      experiment: what is run.
      seed: draws the requests.
      qps: their rate; under levels, the mean; infinite if all come at once.
      levels: rates that take turns, if they do.
      step_log: a file for the steps; "" for none.
    """

    experiment: Experiment
    seed: int
    qps: float
    levels: Levels | None = None
    step_log: str = ""

    def arrivals(self) -> list[Arrival]:
        """Returns the requests."""
        experiment = self.experiment
        units = experiment.load.unit_arrivals(self.seed, experiment.yardstick)
        if self.levels is None:
            return at_rate(units, self.qps)
        return at_levels(
            units,
            self.levels.levels_qps,
            period_s=self.levels.period_s,
            duration_s=self.levels.duration_s,
        )

    def run(self) -> dict[str, Any]:
        """Returns an entry of the report's `runs`."""
        labels = {}
        if self.levels is not None:
            labels["levels_qps"] = list(self.levels.levels_qps)
        return self.experiment.run(
            self.arrivals(),
            qps=self.qps,
            seed=self.seed,
            labels=labels,
            step_log=self.step_log,
        )


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
        units = experiment.load.unit_arrivals(self.seed, experiment.yardstick)
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
    *,
    start_qps: float | None = None,
    resolution: float = RateGrid.resolution,
    max_share: float = MAX_VIOLATION_SHARE,
    num_processes: int = 1,
    store: RunStore | None = None,
) -> list[dict[str, Any]]:
    """Searches every experiment's goodput.

    Args:
      experiments: what to search.
      seeds: searched one by one; the mean is the goodput.
      start_qps: where searches start; None guesses.
      resolution: relative distance of the rates tried.
      max_share: most violations, as a share of the counted requests.
      num_processes: processes that share the work.
      store: of finished tasks.

    Returns:
      An entry of the report's `runs` each: the run of the first seed at its edge,
      with the goodput.
    """
    searches = []
    for one in experiments:
        start = start_qps
        if start is None:
            units = one.load.unit_arrivals(seeds[0], one.yardstick)
            start = guess_qps(units, one.yardstick)
        grid = RateGrid(
            lowest_qps=start / 100, highest_qps=start * 100, resolution=resolution
        )
        searches += [
            GoodputTask(
                experiment=one,
                seed=seed,
                start_qps=start,
                grid=grid,
                max_share=max_share,
            )
            for seed in seeds
        ]
    rows = run_all(searches, num_processes, store)
    found = [SeedGoodput(**row) for row in rows]
    edges = []
    for index, one in enumerate(experiments):
        first = found[index * len(seeds)]
        qps = first.qps or searches[index * len(seeds)].grid.lowest_qps
        edges.append(RateTask(experiment=one, seed=first.seed, qps=qps))
    runs = run_all(edges, num_processes, store)
    return [
        run | _labels(pool(found[index * len(seeds) : (index + 1) * len(seeds)]))
        for index, run in enumerate(runs)
    ]


def _labels(found: Goodput) -> dict[str, Any]:
    """Returns what a searched goodput adds to an entry of `runs`."""
    labels: dict[str, Any] = {
        "goodput_qps": found.qps,
        "goodput_violation_share": found.violation_share,
        "goodput_violation_ci95": list(found.violation_ci95),
        "goodput_seeds": [dataclasses.asdict(one) for one in found.seeds],
    }
    if found.ci95_qps is not None:
        labels["goodput_ci95_qps"] = list(found.ci95_qps)
    return labels
