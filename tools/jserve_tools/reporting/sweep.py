"""Runs many tasks, such as simulations, in this process or in several.

A task holds all that decides its numbers and can be sent to another process, so a sweep
gives the same report however many processes share it, and is continued where it was
interrupted.
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
    """Something to do, here or in another process."""

    def run(self) -> dict[str, Any]:
        """Does it; returns what came of it, for JSON."""
        ...


def _key(task: Any) -> dict[str, Any]:
    return {"task": type(task).__name__} | dataclasses.asdict(task)


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
    key: Callable[[Any], Mapping[str, Any]] = _key,
) -> list[dict[str, Any]]:
    """Returns what came of each task, in order, and shows how far it has come.

    Args:
      runs: Finished tasks, which are not done again; None keeps none.
      key: Returns the configuration by which `runs` knows a task: of a dataclass, the
        name of the class and all fields.
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
