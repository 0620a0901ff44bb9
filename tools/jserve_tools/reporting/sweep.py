"""Runs many tasks, such as simulations, in this process or in several.

A task holds everything that its result depends on, and can be sent to another process.
A sweep therefore gives the same report with any number of processes, and an interrupted
sweep can be continued.
"""

import contextlib
import dataclasses
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from jserve.progress import Progress
from jserve_tools.reporting.finished_runs import FinishedRuns


class Task(Protocol):
    """A piece of work for this or another process."""

    def run(self) -> Any:
        """Does the work; returns its result in the types of JSON."""
        ...


def task_key(task: Any) -> dict[str, Any]:
    """Returns the configuration of a task that is a dataclass."""
    return {"task": type(task).__name__} | dataclasses.asdict(task)


def _run(job: tuple[int, Task]) -> tuple[int, Any]:
    index, task = job
    return index, task.run()


def _ignore_interrupts() -> None:
    """Ignores Ctrl-C in a worker, since the main process ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leave(number: int, frame: object) -> NoReturn:
    """Ends this process as a signal does, but after its workers."""
    del frame
    sys.exit(128 + number)


def run_all(
    stage: str,
    tasks: Sequence[Task],
    *,
    progress: Progress,
    num_processes: int = 1,
    runs: FinishedRuns | None = None,
    key: Callable[[Any], Mapping[str, Any]] = task_key,
) -> list[Any]:
    """Returns the result of each task, in order.

    Args:
      stage: Name of the work, for `progress`, which also counts the finished tasks.
      runs: Store of finished tasks, which are not done again; None stores none.
      key: Returns the configuration under which `runs` stores a task. By default it is
        the name and all fields of the task's dataclass.
    """
    found: list[Any] = [runs and runs.get(key(task)) for task in tasks]
    jobs = [(index, tasks[index]) for index, one in enumerate(found) if one is None]
    if not jobs:
        return found

    def count() -> int:
        return sum(one is not None for one in found)

    with contextlib.ExitStack() as stack:
        stack.enter_context(progress.doing(stage, len(found), count))
        done: Iterable[tuple[int, Any]] = map(_run, jobs)
        if (num_workers := min(num_processes, len(jobs))) > 1:
            processes = multiprocessing.get_context("spawn")
            before = signal.signal(signal.SIGTERM, _leave)  # with all workers
            stack.callback(signal.signal, signal.SIGTERM, before)
            workers = processes.Pool(num_workers, _ignore_interrupts)
            done = stack.enter_context(workers).imap_unordered(_run, jobs)
        for index, result in done:
            found[index] = result
            if runs is not None:
                runs.put(key(tasks[index]), result)
    return found
