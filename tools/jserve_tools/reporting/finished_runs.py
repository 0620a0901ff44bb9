"""Finished runs of a sweep, kept until its report is written.

An interrupted sweep is continued from the JSON lines that it wrote: each holds a run's
key (its whole configuration and the code's version) and its result.
"""

import hashlib
import json
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

from jserve_tools.reporting.documents import commit, plain


def code_version() -> str | None:
    """Returns the commit, with a hash of the changes if the tree was changed."""
    found = commit()
    if found is None or not found.endswith("+"):
        return found
    folder = str(pathlib.Path(__file__).parent)
    changes = subprocess.run(
        ["git", "-C", folder, "diff", "HEAD"], capture_output=True, check=True
    )
    return found + hashlib.blake2b(changes.stdout, digest_size=8).hexdigest()


class FinishedRuns:
    """A JSON-lines file of finished runs.

    Attributes:
      num_found: Number of look-ups that found a run.
    """

    def __init__(self, path: pathlib.Path, *, resumes: bool):
        """Reads the file, if it exists; removes it instead unless `resumes`."""
        self.num_found = 0
        self._path = path
        self._where = {"commit": code_version(), "host": platform.node()}
        self._runs: dict[str, Any] = {}
        if not resumes:
            self.remove()
        elif path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                    self._runs[row["key"]] = row["run"]
                except (ValueError, KeyError, TypeError):
                    continue  # a line that an interrupt has cut

    def _key(self, config: Mapping[str, Any]) -> str:
        return json.dumps(plain(self._where | dict(config)), sort_keys=True)

    def get(self, config: Mapping[str, Any]) -> Any:
        """Returns the result stored under a configuration; None if there is none."""
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
        """Removes the file, once its runs are in a report."""
        self._path.unlink(missing_ok=True)
