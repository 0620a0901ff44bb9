"""Finished runs of a sweep, kept until its report is written.

An interrupted sweep is continued from the JSON lines that it wrote: each holds a run's
key (its whole configuration) and its result. The commit is part of the key, so other
code measures again.
"""

import json
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

from jserve_tools.documents import commit, plain


class FinishedRuns:
    """A JSON-lines file of finished runs.

    Attributes:
      num_found: Times that a run asked for was there.
    """

    def __init__(self, path: pathlib.Path, *, resumes: bool):
        """Opens a file, which need not exist.

        Args:
          path: The file.
          resumes: Whether earlier runs are used; if not, the file is removed.
        """
        self.num_found = 0
        self._path = path
        self._commit = commit()
        self._runs: dict[str, Any] = {}
        if not resumes:
            self.remove()
        elif path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                    self._runs[row["key"]] = row["run"]
                except (ValueError, KeyError, TypeError):
                    continue  # the line that an interrupt cut off

    def _key(self, config: Mapping[str, Any]) -> str:
        where = {"commit": self._commit, "host": platform.node()}
        return json.dumps(plain(where | dict(config)), sort_keys=True)

    def get(self, config: Mapping[str, Any]) -> Any:
        """Returns the result put under this configuration; None if there is none."""
        found = self._runs.get(self._key(config))
        self.num_found += found is not None
        return found

    def put(self, config: Mapping[str, Any], run: Any) -> None:
        """Appends a result, which JSON can hold, to the file."""
        key = self._key(config)
        self._runs[key] = run
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps({"key": key, "run": run}) + "\n")

    def remove(self) -> None:
        """Removes the file: its runs are in a report now."""
        self._path.unlink(missing_ok=True)
