"""Where a program's report goes, and what else is made of it."""

import dataclasses
import json
import pathlib
import tempfile
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Where a report goes, and what else is made of it.

    Attributes:
      output: Folder for report.json, report.html and figures.
      resume: Continue where an interrupted call with the same settings and commit
        stopped: its finished runs are in runs.jsonl in --output until the report is
        written. --noresume measures all of them again.
      html: Write report.html, a page in one file, and its charts in figures/; needs
        the extra `report`.
      compare: A report.json to compare with: prints which metrics differ by more
        than noise.
    """

    output: pathlib.Path = pathlib.Path("out/report")
    resume: bool = True
    html: bool = True
    compare: pathlib.Path | None = None

    def probe(self) -> dict[str, Any] | None:
        """Makes the output folder and reads the older report, before any work.

        Returns:
          The report to compare with; None without one.

        Raises:
          ValueError: If `compare` is not a report.
          OSError: If the folder cannot be written, or the report not be read.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.output):
            pass
        if self.compare is None:
            return None
        try:
            report = json.loads(self.compare.read_text())
        except ValueError as error:
            raise ValueError(f"compare={self.compare} is not JSON: {error}") from None
        if not isinstance(report, dict) or not isinstance(report.get("runs"), list):
            raise ValueError(f"compare={self.compare} is not a report: it has no runs")
        return report
