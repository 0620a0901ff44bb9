"""Runs many tasks, such as simulations, in this process or in several.

A task holds all that its result depends on and can be sent to another process, so a
sweep gives the same report with any number of processes, and an interrupted sweep is
continued.
"""

import contextlib
import dataclasses
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import tqdm

from jserve.progress import Progress, timed_lines
from jserve_tools.reporting.finished_runs import FinishedRuns


class Task(Protocol):
    """A piece of work for this or another process."""

    def run(self) -> dict[str, Any]:
        """Does the work; returns its result in the types of JSON."""
        ...


def _key(task: Any) -> dict[str, Any]:
    return {"task": type(task).__name__} | dataclasses.asdict(task)


def _run(job: tuple[int, Task]) -> tuple[int, dict[str, Any]]:
    index, task = job
    return index, task.run()


def _ignore_interrupts() -> None:
    """Ignores Ctrl-C in a worker, since the main process ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_all(
    tasks: Sequence[Task],
    num_processes: int = 1,
    runs: FinishedRuns | None = None,
    key: Callable[[Any], Mapping[str, Any]] = _key,
) -> list[dict[str, Any]]:
    """Returns the result of each task, in order, and shows progress.

    Args:
      runs: Store of finished tasks, which are not done again; None stores none.
      key: Returns the configuration under which `runs` stores a task. By default it is
        the name and all fields of the task's dataclass.
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
