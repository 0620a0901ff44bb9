"""Runs many simulations, in this process or in several.

The one idea: a task holds all that decides its numbers and can be sent to another
process, so a sweep gives the same report however many processes share it.
"""

import dataclasses
import multiprocessing
import signal
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

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
from jserve_tools.simulated_loads import Levels
from jserve_tools.simulation import Experiment

Found = TypeVar("Found")
Found_co = TypeVar("Found_co", covariant=True)


class Task(Protocol[Found_co]):
    """Something to do, here or in another process."""

    def run(self) -> Found_co:
        """Does it."""
        ...


def _run(task: Task[Found]) -> Found:
    return task.run()


def _leave_alone() -> None:
    """Lets Ctrl-C end the program, not each of its processes with a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_all(tasks: Sequence[Task[Found]], num_processes: int = 1) -> list[Found]:
    """Returns what each task found, in order, with a progress bar.

    Args:
      tasks: what to do.
      num_processes: processes that share them; 1 does all in this one.
    """

    def with_progress(found: Iterable[Found]) -> list[Found]:
        return list(
            tqdm.tqdm(
                found,
                total=len(tasks),
                desc="simulate",
                unit="run",
                disable=None,
                leave=False,
            )
        )

    if min(num_processes, len(tasks)) <= 1:
        return with_progress(map(_run, tasks))
    processes = multiprocessing.get_context("spawn")
    with processes.Pool(min(num_processes, len(tasks)), _leave_alone) as workers:
        return with_progress(workers.imap(_run, tasks))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateTask:
    """One run at one rate, or at levels, with one seed."""

    experiment: Experiment
    seed: int
    qps: float
    levels: Levels | None = None

    def run(self) -> dict[str, Any]:
        """Returns an entry of the report's `runs`."""
        experiment = self.experiment
        units = experiment.load.unit_arrivals(self.seed, experiment.yardstick)
        if self.levels is None:
            arrivals = at_rate(units, self.qps)
            return experiment.run(arrivals, qps=self.qps, seed=self.seed)
        arrivals = at_levels(
            units,
            self.levels.levels_qps,
            period_s=self.levels.period_s,
            duration_s=self.levels.duration_s,
        )
        return experiment.run(
            arrivals,
            qps=self.levels.mean_qps,
            seed=self.seed,
            labels={"levels_qps": list(self.levels.levels_qps)},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoodputTask:
    """The search for one seed's goodput."""

    experiment: Experiment
    seed: int
    start_qps: float
    grid: RateGrid
    max_share: float

    def run(self) -> SeedGoodput:
        """Returns what the search found; hopeless probes are cut short."""
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

        return search_seed(
            probe,
            self.seed,
            grid=self.grid,
            start_qps=self.start_qps,
            max_share=self.max_share,
        )


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
) -> list[dict[str, Any]]:
    """Searches every experiment's goodput.

    Args:
      experiments: what to search.
      seeds: searched one by one; the mean is the goodput.
      start_qps: where searches start; None guesses.
      resolution: relative distance of the rates tried.
      max_share: most violations, as a share of the counted requests.
      num_processes: processes that share the work.

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
    found = run_all(searches, num_processes)
    edges = []
    for index, one in enumerate(experiments):
        first = found[index * len(seeds)]
        qps = first.qps or searches[index * len(seeds)].grid.lowest_qps
        edges.append(RateTask(experiment=one, seed=first.seed, qps=qps))
    runs = run_all(edges, num_processes)
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
