"""Publishes a finished report: files in a folder, and a comparison as text."""

import sys
from collections.abc import Mapping
from typing import Any

from jserve_tools.reporting.comparison import comparison
from jserve_tools.reporting.config import ReportConfig
from jserve_tools.reporting.documents import one_line, write_report
from jserve_tools.reporting.finished_runs import FinishedRuns


def publish(
    report: Mapping[str, Any],
    config: ReportConfig,
    old_report: Mapping[str, Any] | None,
    runs: FinishedRuns,
) -> str:
    """Writes report.json and, if configured, the page and the pictures.

    The stored runs that the report is made of are removed at the end.

    Returns:
      Lines that name the files, the comparison, if any, and the report for scripts.
    """
    lines = [f"\nreport: {write_report(config.output, report)}"]
    if config.html:
        try:
            # Altair takes a second to import.
            from jserve_tools.reporting.page import write_page
        except ImportError as error:
            lines.append(f"no page, without {error.name}: pip install 'jserve[report]'")
        else:
            write_page(report, config.output)
            lines.append(f"page: {config.output / 'report.html'}")
            lines.append(f"pictures: {config.output / 'report.png'} and figures/")
    if old_report is not None:
        lines.append(f"\n{comparison(old_report, report)}")
    if config.json_line and not sys.stdout.isatty():
        lines.append(one_line(report))
    runs.remove()
    return "\n".join(lines)
