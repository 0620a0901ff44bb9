"""Finished cells on disk, and processes that finish the others.

The one idea: whoever finishes a cell writes it down at once and whole, so an
interrupted reproduction goes on where it stopped.
"""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import pathlib
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from cells import Cell
from tqdm import tqdm

from jserve_tools.documents import write_whole

_KEY_DIGITS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellStore:
    """A folder of results, one file a cell.

    A cell is known by the hash of its values, whatever the code was; the commit that
    computed it is written beside the result. Remove the folder after changing a
    policy or the simulator.

    Attributes:
      folder: where the files are.
      commit: of the code that runs now.
    """

    folder: pathlib.Path
    commit: str | None

    def result(self, cell: Cell) -> dict[str, Any]:
        """Returns a cell's result: the stored one, else a new one, then stored.

        Raises:
          ValueError: if a stored file is no such result.
        """
        return dict(self.entry(cell)["result"])

    def entry(self, cell: Cell) -> dict[str, Any]:
        """Returns a cell's values, commit, CPU seconds and result; see `result`."""
        values = _values(cell)
        text = json.dumps(values, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]
        path = self.folder / f"{values['kind']}-{key}.json"
        if path.exists():
            entry = json.loads(path.read_text())
            if not isinstance(entry, dict) or entry.get("cell") != values:
                raise ValueError(f"{path} does not hold the cell {text}: remove it")
            return entry
        start_s = time.process_time()
        result = cell.run()
        entry = {
            "cell": values,
            "commit": self.commit,
            "cpu_s": round(time.process_time() - start_s, 3),
            "result": result,
        }
        write_whole(path, f"{json.dumps(entry)}\n".encode())
        return entry


def _values(cell: Any) -> dict[str, Any]:
    """Returns what decides a cell's result, as JSON holds it."""
    values = {"kind": type(cell).__name__, **dataclasses.asdict(cell)}
    return dict(json.loads(json.dumps(values)))


class Task(Protocol):
    """Work on cells that a process can be sent."""

    def work(self, store: CellStore) -> Any:
        """Returns what came of it."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellTask:
    """Finishes one cell.

    Attributes:
      cell: which.
    """

    cell: Cell

    def work(self, store: CellStore) -> dict[str, Any]:
        """Returns the cell's entry."""
        return store.entry(self.cell)


class Workers:
    """Some processes, or none: then tasks run in this one. A context manager."""

    def __init__(self, store: CellStore, num_processes: int):
        self._store = store
        self._num_processes = num_processes
        self._stack = contextlib.ExitStack()
        self._pool: Any = None

    def __enter__(self) -> "Workers":
        if self._num_processes > 1:
            # Spawned: a fork would copy the progress bar's thread in mid-air. Leaving
            # the pool's context ends the processes, whatever they do.
            context = multiprocessing.get_context("spawn")
            pool = context.Pool(self._num_processes, initializer=_ignore_interrupt)
            self._pool = self._stack.enter_context(pool)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def finish(self, tasks: Sequence[Task], label: str) -> list[Any]:
        """Returns what came of each task, in their order; shows the progress."""
        jobs = [(self._store, index, task) for index, task in enumerate(tasks)]
        found: list[Any] = [None] * len(jobs)
        done: Iterator[tuple[int, Any]] = map(_work, jobs)
        if self._pool is not None:
            done = self._pool.imap_unordered(_work, jobs)
        for index, result in tqdm(done, total=len(jobs), desc=label, disable=None):
            found[index] = result
        return found


def _ignore_interrupt() -> None:
    """Leaves Ctrl-C to the parent, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(job: tuple[CellStore, int, Task]) -> tuple[int, Any]:
    store, index, task = job
    return index, task.work(store)
