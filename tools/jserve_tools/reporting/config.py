"""Configuration of a program's report."""

import dataclasses
import json
import pathlib
from typing import Any

from jserve.config import check_writable


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Folder, page and comparison of a program's report.

    Attributes:
      output: Folder for report.json, report.html and figures/.
      resume: Continue where an interrupted call with the same settings and commit
        stopped. Its finished runs are in runs.jsonl in --output until the report is
        written; --noresume makes all runs again.
      html: Write report.html, a page in one file, and its charts in figures/. Needs
        the extra `report`: pip install 'jserve[report]'.
      json_line: Print the report as the last line, unless stdout is a terminal.
        --nojson_line is for pipes that people read, such as into less or tee.
      compare: An older report.json. Prints which metrics differ from it by more than
        noise.
    """

    output: pathlib.Path = pathlib.Path("out/report")
    resume: bool = True
    html: bool = True
    json_line: bool = True
    compare: pathlib.Path | None = None

    def probe(self) -> dict[str, Any] | None:
        """Reads the older report and makes the output folder, before any work.

        Returns:
          The report to compare with; None without one.

        Raises:
          ValueError: If `compare` is not a report, or `output` cannot be a folder.
          OSError: If the report cannot be read.
        """
        report = None if self.compare is None else _read_report(self.compare)
        check_writable("output", self.output)
        self.output.mkdir(parents=True, exist_ok=True)
        return report


def _read_report(path: pathlib.Path) -> dict[str, Any]:
    """Reads a report, and checks that it can be compared."""
    from jserve_tools.reporting.cells import cells  # these import NumPy
    from jserve_tools.reporting.metrics import metrics

    try:
        report: dict[str, Any] = json.loads(path.read_text())
        for cell in cells(report):
            metrics([cell])  # a broken report fails here, not after a sweep
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"compare={path} is not a report: {error}") from None
    return report
